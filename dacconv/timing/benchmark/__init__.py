"""Benchmarks: time, memory and size of models side by side. ``run.bench`` is the entry point.

Every model is timed in a process of its own (``worker``), because several sessions of ONNX
Runtime in one process take the cores of the processor from each other.
"""
