"""New nodes and constants: how a conv of dacconv's own is spelled in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from dacconv.errors import UnsupportedError
from dacconv.formats.onnx.document import DEFAULT_DOMAINS, Entry, entry_of, unique
from dacconv.formats.onnx.tensors import Tensor, from_array
from dacconv.graph.types import Array, Conv

DType = np.dtype[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """The new constants; the same array in the same spelling is stored once.

    ``names`` are those of all nodes and ``values`` those of all values, so that new ones
    differ from both; they grow.
    """

    names: set[str]
    values: set[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _known: dict[tuple[int, str, str], tuple[str, Array]] = field(default_factory=dict)

    def put(
        self,
        values: Array,
        name: str,
        dtype: DType,
        spelling: Callable[[Array], Array] | None = None,
    ) -> str:
        """The initializer that holds ``values``, spelled as the operator wants them.

        Raises:
            UnsupportedError: they overflow in ``dtype``.
        """
        way = spelling.__qualname__ if spelling is not None else ""
        key = (id(values), dtype.name, way)
        if key not in self._known:
            stored = unique(name, self.values)
            array = spelling(values) if spelling is not None else values
            self.tensors[stored] = from_array(stored, _cast(array, name, dtype))
            # the array is kept: an id is only good for as long as its object lives
            self._known[key] = (stored, values)
        return self._known[key][0]


def overflows(values: Array, dtype: DType) -> bool:
    """Whether finite values are infinite in ``dtype``."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    wide = cast.astype(np.float32, copy=False) if cast.itemsize < 4 else cast
    return bool(not np.isfinite(wide).all() and np.isfinite(values).all())


def _cast(values: Array, name: str, dtype: DType) -> Array:
    if overflows(values, dtype):
        raise UnsupportedError(
            f"the new weights overflow in {dtype.name}",
            where=name.rpartition(".")[0],
            hint="leave this layer out (--skip), or convert the model in float32",
        )
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def successor(node: NodeProto, model: Entry) -> Entry:
    """A new node, with what the exporter noted on the node that it stands for."""
    if model.proto.metadata_props:
        node.metadata_props.extend(model.proto.metadata_props)
    node.domain = model.proto.domain if model.proto.domain in DEFAULT_DOMAINS else ""
    return entry_of(node.name, node)


def emit(
    store: Store,
    conv: Conv,
    *,
    name: str,
    source: str,
    result: str,
    dtype: DType,
    model: Entry,
    flat: bool = False,
) -> list[Entry]:
    """The nodes that make value ``result`` from ``source`` as ``conv`` says.

    ``flat`` says that ``source`` is known to have two axes, as a Gemm wants it.

    Raises:
        UnsupportedError: ONNX cannot say this.
    """
    if conv.pad_mode != "zeros":
        raise UnsupportedError(f"an ONNX Conv has no {conv.pad_mode!r} padding", where=name)
    if not conv.kernel:
        return _linear(store, conv, (name, source, result), dtype, model, flat=flat)
    spelling = _Swap(conv.groups) if conv.transposed else None
    inputs = [source, store.put(conv.weight, f"{name}.weight", dtype, spelling)]
    if conv.bias is not None:
        inputs.append(store.put(conv.bias, f"{name}.bias", dtype))
    attributes: dict[str, Any] = {
        "kernel_shape": list(conv.kernel),
        "strides": list(conv.stride),
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }
    if conv.auto_pad:
        attributes["auto_pad"] = conv.auto_pad
    else:
        attributes["pads"] = [p for p, _ in conv.padding] + [p for _, p in conv.padding]
    if conv.transposed and any(conv.output_padding):
        attributes["output_padding"] = list(conv.output_padding)
    operator = "ConvTranspose" if conv.transposed else "Conv"
    return [successor(helper.make_node(operator, inputs, [result], name=name, **attributes), model)]


def concatenate(
    store: Store, sources: Sequence[str], result: str, *, name: str, model: Entry
) -> Entry:
    """The node that joins values along the channels."""
    node = helper.make_node("Concat", list(sources), [result], name=name, axis=1)
    return successor(node, model)


class _Swap:
    """Kernels as a ConvTranspose wants them: ``(in, out / groups, *k)``."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.__qualname__ = f"swapped in {groups}"

    def __call__(self, weight: Array) -> Array:
        swapped = weight.reshape(self.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        return swapped.reshape(-1, *swapped.shape[2:])


def _turned(weight: Array) -> Array:
    return weight.T


def _linear(
    store: Store,
    conv: Conv,
    names: tuple[str, str, str],
    dtype: DType,
    model: Entry,
    *,
    flat: bool,
) -> list[Entry]:
    """A Gemm where one was or fits, else MatMul and Add, which take data of any rank."""
    name, source, result = names
    if model.op == "Gemm" or (flat and conv.bias is not None):
        inputs = [source, store.put(conv.weight, f"{name}.weight", dtype)]
        if conv.bias is not None:
            inputs.append(store.put(conv.bias, f"{name}.bias", dtype))
        node = helper.make_node("Gemm", inputs, [result], name=name, transB=1)
        return [successor(node, model)]
    product = result if conv.bias is None else unique(f"{name}_out", store.values)
    weight = store.put(conv.weight, f"{name}.weight", dtype, _turned)
    entries = [successor(helper.make_node("MatMul", [source, weight], [product], name=name), model)]
    if conv.bias is not None:
        bias = store.put(conv.bias, f"{name}.bias", dtype)
        add = unique(f"{name}_bias", store.names)
        node = helper.make_node("Add", [product, bias], [result], name=add)
        entries.append(successor(node, model))
    return entries
