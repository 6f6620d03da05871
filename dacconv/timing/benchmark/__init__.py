"""Time, memory and size of models side by side; ``run.bench`` is the way in.

Every model is timed in a process of its own (``worker``), because several sessions of ONNX
Runtime alive in one process take the processor's cores from each other.
"""
