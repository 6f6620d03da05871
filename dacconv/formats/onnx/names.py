"""The names under which users see the nodes: unique, and the same on every run."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from onnx import NodeProto

_WEIGHT_AT = {
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "BatchNormalization": 1,
    "ConvInteger": 1, "QLinearConv": 3,
}  # fmt: skip
_SUFFIX = re.compile(r"[./_](weight|kernel|w|gamma|scale|weight_quantized)(:\d+)?$", re.IGNORECASE)


def display_names(nodes: Sequence[NodeProto], tensors: Container[str]) -> list[str]:
    """One name per node: its own, else its weight's stem, else operator and index."""
    taken: set[str] = set()
    names: list[str | None] = []
    for node in nodes:
        own = node.name if node.name and node.name not in taken else None
        if own:
            taken.add(own)
        names.append(own)
    return [
        name or unique(weight_stem(node, tensors) or f"{node.op_type}_{index}", taken)
        for index, (name, node) in enumerate(zip(names, nodes, strict=True))
    ]


def weight_stem(node: NodeProto, tensors: Container[str]) -> str:
    """``features.0`` for a node whose weight is called ``features.0.weight``, else nothing."""
    at = _WEIGHT_AT.get(node.op_type)
    if at is None or len(node.input) <= at or node.input[at] not in tensors:
        return ""
    stem, found = _SUFFIX.subn("", node.input[at])
    return stem if found else ""


def unique(name: str, taken: set[str]) -> str:
    """``name``, with a number behind it if it is taken; the result is taken from then on."""
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
