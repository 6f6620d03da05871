"""What torch files can hold of a lower precision, and what to do where they cannot."""

from __future__ import annotations

from dacconv.graph.precision import FP32, INT8

_EXPORT = "export the network (torch.onnx.export) and convert the .onnx file"


def precision_refusal(precision: str) -> str | None:
    """The reason why a model of a torch format cannot be written in a precision, or None."""
    if precision == FP32:
        return None
    if precision == INT8:
        return f"int8 is written into ONNX files only: {_EXPORT}"
    return (
        f"{precision} is written into ONNX files only; torch would compute in {precision} as well: "
        f"{_EXPORT}"
    )
