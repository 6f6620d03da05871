"""The ONNX nodes and initializers for convs, linear layers and concatenations."""

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
    """The new initializers; the same array in the same layout is stored once.

    ``names`` are the names of all nodes and ``values`` those of all values; new names are unique
    among them, and added to them.
    """

    names: set[str]
    values: set[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _stored: dict[tuple[int, str, str], tuple[str, Array]] = field(default_factory=dict)

    def put(
        self,
        values: Array,
        name: str,
        dtype: DType,
        layout: Callable[[Array], Array] | None = None,
    ) -> str:
        """The name of the initializer that holds ``values``.

        ``layout`` puts the values into the layout that the operator requires.

        Raises:
            UnsupportedError: the values overflow in ``dtype``.
        """
        layout_name = layout.__qualname__ if layout is not None else ""
        key = (id(values), dtype.name, layout_name)
        if key not in self._stored:
            stored = unique(name, self.values)
            array = layout(values) if layout is not None else values
            self.tensors[stored] = from_array(stored, _cast(array, name, dtype))
            # the array is stored as well, since its id is only unique while it exists
            self._stored[key] = (stored, values)
        return self._stored[key][0]


def overflows(values: Array, dtype: DType) -> bool:
    """Whether finite values become infinite in ``dtype``."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    wide = cast.astype(np.float32, copy=False) if cast.itemsize < 4 else cast
    return bool(not np.isfinite(wide).all() and np.isfinite(values).all())


def _cast(values: Array, name: str, dtype: DType) -> Array:
    if overflows(values, dtype):
        raise UnsupportedError(
            f"the new weights overflow in {dtype.name}",
            where=name.rpartition(".")[0],
            hint="leave this layer out (--skip), or convert the replaced in float32",
        )
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def replacement(node: NodeProto, replaced: Entry) -> Entry:
    """The entry of a new node, with the exporter's metadata of the node that it replaces."""
    if replaced.proto.metadata_props:
        node.metadata_props.extend(replaced.proto.metadata_props)
    node.domain = replaced.proto.domain if replaced.proto.domain in DEFAULT_DOMAINS else ""
    return entry_of(node.name, node)


def conv_nodes(
    store: Store,
    conv: Conv,
    *,
    name: str,
    source: str,
    result: str,
    dtype: DType,
    replaced: Entry,
    flat: bool = False,
) -> list[Entry]:
    """The nodes that compute value ``result`` from ``source`` as ``conv`` does.

    ``flat`` means that ``source`` is known to have two axes, as a Gemm requires.

    Raises:
        UnsupportedError: ONNX has no operator for this conv.
    """
    if conv.pad_mode != "zeros":
        raise UnsupportedError(f"an ONNX Conv has no {conv.pad_mode!r} padding", where=name)
    if not conv.kernel:
        return _linear(store, conv, (name, source, result), dtype, replaced, flat=flat)
    layout = _SwapChannels(conv.groups) if conv.transposed else None
    inputs = [source, store.put(conv.weight, f"{name}.weight", dtype, layout)]
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
    return [
        replacement(helper.make_node(operator, inputs, [result], name=name, **attributes), replaced)
    ]


def concat_node(
    store: Store, sources: Sequence[str], result: str, *, name: str, replaced: Entry
) -> Entry:
    """The node that concatenates values along the channels."""
    node = helper.make_node("Concat", list(sources), [result], name=name, axis=1)
    return replacement(node, replaced)


class _SwapChannels:
    """Puts the kernel of a transposed conv into ONNX's layout, ``(in, out / groups, *k)``."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.__qualname__ = f"channels swapped in {groups} groups"

    def __call__(self, weight: Array) -> Array:
        swapped = weight.reshape(self.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        return swapped.reshape(-1, *swapped.shape[2:])


def _transposed(weight: Array) -> Array:
    return weight.T


def _linear(
    store: Store,
    conv: Conv,
    names: tuple[str, str, str],
    dtype: DType,
    replaced: Entry,
    *,
    flat: bool,
) -> list[Entry]:
    """A Gemm if the layer was one or its input has two axes, else a MatMul and an Add."""
    name, source, result = names
    if replaced.op == "Gemm" or (flat and conv.bias is not None):
        inputs = [source, store.put(conv.weight, f"{name}.weight", dtype)]
        if conv.bias is not None:
            inputs.append(store.put(conv.bias, f"{name}.bias", dtype))
        node = helper.make_node("Gemm", inputs, [result], name=name, transB=1)
        return [replacement(node, replaced)]
    product = result if conv.bias is None else unique(f"{name}_out", store.values)
    weight = store.put(conv.weight, f"{name}.weight", dtype, _transposed)
    entries = [
        replacement(helper.make_node("MatMul", [source, weight], [product], name=name), replaced)
    ]
    if conv.bias is not None:
        bias = store.put(conv.bias, f"{name}.bias", dtype)
        add = unique(f"{name}_bias", store.names)
        node = helper.make_node("Add", [product, bias], [result], name=add)
        entries.append(replacement(node, replaced))
    return entries
