"""The inputs of a model that a caller must feed, with the sizes that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import ValueInfoProto

from dacconv.errors import UsageError
from dacconv.formats.onnx.document import INPUTS_CARRY_WEIGHTS_BELOW_IR, Document
from dacconv.formats.onnx.tensors import type_name
from dacconv.graph.types import Shape, ValueSpec


def real_inputs(document: Document) -> tuple[ValueInfoProto, ...]:
    """The inputs that a caller must feed: those without an initializer."""
    fixed = set(document.tensors) | document.sparse
    return tuple(value for value in document.rest.input if value.name not in fixed)


def default_notes(document: Document) -> tuple[str, ...]:
    """A note about the inputs that declared_size a default value, which ONNX allows from IR 4 on.

    Exporters that keep every weight among the inputs make the same files, so these are taken as
    constants, as they are in older files.
    """
    if document.header.ir_version < INPUTS_CARRY_WEIGHTS_BELOW_IR:
        return ()
    names = [value.name for value in document.rest.input if value.name in document.tensors]
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"inputs with a default value are taken as constants: {', '.join(names[:3])}{more}; those "
        "of layers that are split or merged are no longer inputs of the converted model",
    )


def declared_shape(value: ValueInfoProto) -> Shape | None:
    """The shape that the file states; None if it does not even state the rank.

    Some exporters write 0 or -1 for an axis whose size is free.
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in tensor.shape.dim
    )


def declared_specs(document: Document) -> tuple[ValueSpec, ...]:
    """The inputs with the shapes that the file states; free sizes are None."""
    specs = input_specs(document, {})
    declared = {value.name: declared_shape(value) for value in real_inputs(document)}
    return tuple(replace(spec, shape=declared[spec.name]) for spec in specs)


def input_specs(document: Document, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ValueSpec, ...]:
    """The real inputs with the user's ``shapes`` applied, symbols bound, and a free batch as 1.

    ``shapes`` maps an input's name, or ``""`` for the first one, to its shape. A symbol that
    is bound by the shape of one input is bound in all of them. A free first axis is taken as a
    batch if the input has more than two axes, or two of which the second is fixed; otherwise it
    may be a length.

    Raises:
        UsageError: a name is unknown, or a shape contradicts the model.
    """
    values = real_inputs(document)
    chosen = _by_name(values, shapes)
    symbols: dict[str, int] = {}
    for value in values:
        if value.name in chosen:
            _check(value, chosen[value.name])
            for symbol, size in zip(_symbols(value), chosen[value.name], strict=False):
                if symbol:
                    symbols.setdefault(symbol, size)
    for value in values:
        free = _free_batch(_bound(value, symbols))
        if free and value.name not in chosen:
            symbols.setdefault(_symbols(value)[0], 1)
    resolved = {value.name: chosen.get(value.name) or _sized(value, symbols) for value in values}
    return tuple(
        ValueSpec(value.name, resolved[value.name], type_name(value.type.tensor_type.elem_type))
        if value.type.HasField("tensor_type")
        else ValueSpec(value.name, None, str(value.type.WhichOneof("value") or "unknown"))
        for value in values
    )


def _by_name(
    values: tuple[ValueInfoProto, ...], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    names = [value.name for value in values]
    descriptions = ", ".join(_description(value) for value in values) or "none"
    chosen: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if (name and name not in names) or not names:
            raise UsageError(
                f"the model has no input {name!r}" if name else "the model has no inputs",
                where="--input-shape",
                hint=f"its inputs are: {descriptions}",
            )
        chosen[name or names[0]] = tuple(int(size) for size in shape)
    return chosen


def _description(value: ValueInfoProto) -> str:
    shape = declared_shape(value)
    if shape is None:
        return str(value.name)
    sizes = [
        str(size) if size is not None else (symbol or "?")
        for size, symbol in zip(shape, _symbols(value), strict=True)
    ]
    return f"{value.name} ({', '.join(sizes)})"


def _check(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    declared = declared_shape(value)
    if any(size < 1 for size in shape):
        raise UsageError(
            f"input {value.name!r} cannot have the shape {list(shape)}: sizes are 1 or more",
            where="--input-shape",
        )
    if declared is None:
        return
    fits = len(declared) == len(shape) and all(
        declared_size is None or declared_size == size
        for declared_size, size in zip(declared, shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"input {value.name!r} cannot have the shape {list(shape)}: the model fixes it as "
            f"{_description(value)}",
            where="--input-shape",
        )


def _symbols(value: ValueInfoProto) -> tuple[str, ...]:
    return tuple(str(d.dim_param) for d in value.type.tensor_type.shape.dim)


def _bound(value: ValueInfoProto, symbols: Mapping[str, int]) -> Shape | None:
    shape = declared_shape(value)
    if shape is None:
        return None
    return tuple(
        size if size is not None else symbols.get(symbol) if symbol else None
        for size, symbol in zip(shape, _symbols(value), strict=True)
    )


def _sized(value: ValueInfoProto, symbols: Mapping[str, int]) -> Shape | None:
    """The shape with symbols bound, and a batch that is still free as 1."""
    shape = _bound(value, symbols)
    return (1, *shape[1:]) if shape is not None and _free_batch(shape) else shape


def _free_batch(shape: Shape | None) -> bool:
    return shape is not None and (
        len(shape) > 1 and shape[0] is None and (len(shape) > 2 or shape[1] is not None)
    )
