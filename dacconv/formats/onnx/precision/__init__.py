"""Low precision in ONNX: int8 by ONNX Runtime's quantiser, and weights stored in half precision."""
