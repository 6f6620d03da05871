"""Weights stored in half precision, with a Cast back to float32 in front of their readers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np
from onnx import GraphProto, TensorProto, helper

from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import (
    INPUTS_CARRY_WEIGHTS_BELOW_IR,
    Document,
    Entry,
    entry_of,
    unique,
    value_names,
)
from dacconv.formats.onnx.new_nodes import overflows
from dacconv.formats.onnx.tensors import Tensor, from_array, value_info
from dacconv.graph.precision import BF16, FP16

DTYPES = {FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}
OLDEST_OPSET = {FP16: 7, BF16: 13}
"""The opset from which on Cast takes the type."""


def stored_in_half(
    document: Document, constants: Constants, layers: Mapping[str, str]
) -> tuple[Document, dict[str, str]]:
    """The document with the weights of some layer nodes stored in half precision.

    ``layers`` maps the name of a node to ``fp16`` or ``bf16``. Also returns the reason for each
    node whose weight stays as it is. The model computes in float32, with the rounded weights.
    """
    by_name = {entry.name: entry for entry in document.entries}
    reasons: dict[str, str] = {}
    stored: dict[str, str] = {}
    for name, precision in layers.items():
        roots, reason = _roots(by_name[name], constants, layers, precision)
        if reason is None:
            stored |= dict.fromkeys(roots, precision)
        else:
            reasons[name] = reason
    for name in layers.keys() - reasons.keys():
        # a weight that stays for the sake of another layer
        if not stored.keys() >= set(constants.roots(_weight(by_name[name], constants))):
            reasons[name] = "its weight is shared with a layer that stays in fp32"
    return _with_casts(document, stored), reasons


def _roots(
    entry: Entry, constants: Constants, layers: Collection[str], precision: str
) -> tuple[tuple[str, ...], str | None]:
    """The initializers of a layer's weight, and the reason why they stay as they are."""
    weight = _weight(entry, constants)
    if not weight:
        return (), "its weight is not a constant"
    if constants.document.opset < OLDEST_OPSET[precision]:
        return (), f"{precision} needs opset {OLDEST_OPSET[precision]}"
    roots = constants.roots(weight)
    tensors = constants.document.tensors
    if any(name not in tensors for name in roots):
        return (), "its weight is the value of a Constant node"
    if any(tensors[name].data_type != TensorProto.FLOAT for name in roots):
        return (), "its weight is not stored in float32"
    for name in roots:
        others = [user.name for user in constants.users(name) if user.name not in layers]
        if others:
            return (), f"its weight is also read by {others[0]}"
        if overflows(tensors[name].array(), DTYPES[precision]):
            return (), f"its weights overflow in {precision}"
    return roots, None


def _weight(entry: Entry, constants: Constants) -> str:
    """The constant that a layer multiplies with; empty where there is none."""
    return next((name for name in entry.proto.input[:2] if name in constants), "")


def _with_casts(document: Document, stored: Mapping[str, str]) -> Document:
    """The document with the initializers ``stored`` in their precision, behind a Cast."""
    values = value_names(document)
    names = {entry.name for entry in document.entries}
    casts: list[Entry] = []
    tensors: dict[str, Tensor] = {}
    added: list[Tensor] = []
    for name, tensor in document.tensors.items():
        if name not in stored:
            tensors[name] = tensor
            continue
        half = unique(f"{name}_{stored[name]}", values)
        cast = unique(f"{name}_cast", names)
        tensors[half] = from_array(half, tensor.array().astype(DTYPES[stored[name]]))
        added.append(tensors[half])
        proto = helper.make_node("Cast", [half], [name], name=cast, to=TensorProto.FLOAT)
        casts.append(entry_of(cast, proto))
    rest = GraphProto()
    rest.CopyFrom(document.rest)
    _replace_inputs(document, rest, stored, added)
    return replace(document, entries=(*casts, *document.entries), tensors=tensors, rest=rest)


def _replace_inputs(
    document: Document, rest: GraphProto, stored: Collection[str], added: Iterable[Tensor]
) -> None:
    """Weights are no longer inputs; before IR 4 every initializer must be one."""
    inputs = [value for value in rest.input if value.name not in stored]
    if document.header.ir_version < INPUTS_CARRY_WEIGHTS_BELOW_IR:
        inputs += [value_info(tensor) for tensor in added]
    del rest.input[:]
    rest.input.extend(inputs)
