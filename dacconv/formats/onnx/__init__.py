"""ONNX graphs: reading, running, rewriting and writing them."""
