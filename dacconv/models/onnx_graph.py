"""An ONNX graph as dacconv's own: what each node is, reads, makes and owns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto

from dacconv.errors import UnsupportedError
from dacconv.models.onnx_affine import batch_norm_skip, loose_operands
from dacconv.models.onnx_consts import Constants
from dacconv.models.onnx_document import Document, Entry, reads, subgraphs
from dacconv.models.onnx_geometry import (
    attributes_of,
    conv_attributes,
    conv_geometry,
    linear_geometry,
    spatial,
)
from dacconv.models.onnx_load import version_notes
from dacconv.models.onnx_names import unique
from dacconv.models.onnx_operators import CannotEvaluate
from dacconv.models.onnx_shapes import Inferred
from dacconv.models.onnx_skips import (
    QUANTISED_CONVS,
    RUNTIME_CONVS,
    conv_skip,
    quantised,
    weight_skip,
)
from dacconv.types import Geometry, Graph, Node, Op, Shape, ValueSpec

POOLS = frozenset({"AveragePool", "MaxPool", "GlobalAveragePool"})


@dataclass(frozen=True, slots=True)
class _Role:
    """What a node is to dacconv, beyond its name and edges."""

    op: Op = "other"
    weight: str | None = None
    geometry: Geometry | None = None
    skip: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GraphReader:
    """A document with what is known of its values."""

    document: Document
    constants: Constants
    inferred: Inferred
    owned: set[str] = field(default_factory=set)

    def graph(self, inputs: tuple[ValueSpec, ...]) -> Graph:
        """The whole graph, nodes in the order of the file, which is one of execution."""
        return Graph(
            nodes=tuple(self._nodes()),
            inputs=inputs,
            outputs=self.document.outputs,
            order="execution",
            notes=self.document.notes + version_notes(self.document),
        )

    def _nodes(self) -> Iterator[Node]:
        taken = {entry.name for entry in self.document.entries}
        self.owned.clear()
        for entry in self.document.entries:
            for attribute, graph in subgraphs(entry.proto):
                yield from self._inner(entry, f"{entry.name}/{attribute}", graph, taken)
            role = self.role(entry)
            output = entry.writes[0] if entry.writes else ""
            yield Node(
                name=entry.name,
                op=role.op,
                inputs=tuple(name for name in entry.reads if name not in self.constants),
                output=output,
                shape=self.inferred.shapes.get(output),
                kind=entry.op,
                weight=role.weight,
                geometry=role.geometry,
                skip=role.skip,
                params=self._params(entry),
            )

    def _params(self, entry: Entry) -> int:
        """The constant elements that this node is the first to use at runtime."""
        if entry.writes and entry.writes[0] in self.constants.chained:
            return 0
        total = 0
        for name in entry.reads:
            for root in self.constants.roots(name) if name in self.constants else ():
                if root not in self.owned:
                    self.owned.add(root)
                    total += self.constants.elements(root)
        return total

    def role(self, entry: Entry) -> _Role:
        """Classify one node of the main graph."""
        if entry.writes and entry.writes[0] in self.constants.chained:
            return _Role()
        if entry.op == "Conv":
            return self._conv(entry)
        if entry.op in QUANTISED_CONVS or entry.op in RUNTIME_CONVS:
            return self._foreign_conv(entry)
        if entry.op == "ConvTranspose":
            return self._conv_transpose(entry)
        if entry.op in ("Gemm", "MatMul"):
            return self._linear(entry)
        if entry.op == "BatchNormalization":
            skip = batch_norm_skip(entry, self.constants)
            return _Role("other" if skip else "affine", skip=skip)
        if loose_operands(entry, self.constants, self.inferred) is not None:
            return _Role("affine")
        return _Role(self._joining(entry))

    def _shape(self, entry: Entry, index: int) -> Shape | None:
        names = entry.proto.input
        return self.inferred.shapes.get(names[index]) if len(names) > index else None

    def _output_shape(self, entry: Entry) -> Shape | None:
        return self.inferred.shapes.get(entry.writes[0]) if entry.writes else None

    def _weight_shape(self, name: str) -> tuple[int, ...] | None:
        if name not in self.constants:
            return self.inferred.known(name)
        try:
            return self.constants.shape(name)
        except CannotEvaluate:
            return self.inferred.known(name)

    def _conv(self, entry: Entry) -> _Role:
        names = entry.proto.input
        weight = names[1] if len(names) > 1 else ""
        skip = conv_skip(entry, self.constants)
        dims = self._weight_shape(weight)
        geometry = None
        if dims is not None and len(dims) > 2:
            data = self._shape(entry, 0)
            attributes = conv_attributes(entry, dims, spatial(data, len(dims) - 2))
            skip = skip or attributes.fault
            geometry = conv_geometry(
                attributes,
                (dims[1] * attributes.groups, dims[0]),
                bias=len(names) > 2 and bool(names[2]),
                shapes=(data, self._output_shape(entry)),
                data_type=self._data_type(weight),
            )
        else:
            skip = skip or "the shape of its weight is not known"
        identity = self.constants.identity(weight) if weight in self.constants else None
        return _Role("conv", identity, geometry, skip)

    def _data_type(self, name: str) -> int | None:
        known = self.constants.data_type(name) if name in self.constants else None
        return known or self.inferred.types.get(name)

    def _foreign_conv(self, entry: Entry) -> _Role:
        at = QUANTISED_CONVS.get(entry.op, 1)
        weight = entry.proto.input[at] if len(entry.proto.input) > at else ""
        dims = self._weight_shape(weight)
        geometry = None
        if dims is not None and len(dims) > 2 and "nhwc" not in entry.op.lower():
            attributes = conv_attributes(entry, dims, None)
            geometry = conv_geometry(
                attributes,
                (dims[1] * attributes.groups, dims[0]),
                bias=False,
                shapes=(self._shape(entry, 0), self._output_shape(entry)),
                data_type=self._data_type(weight),
            )
        skip = (
            f"quantised ({entry.op}): split the float model first, then quantise"
            if entry.op in QUANTISED_CONVS
            else f"{entry.op} is ONNX Runtime's own operator: convert the model before it was "
            "optimised for that runtime"
        )
        return _Role("conv", weight or None, geometry, skip)

    def _conv_transpose(self, entry: Entry) -> _Role:
        names = entry.proto.input
        weight = names[1] if len(names) > 1 else ""
        dims = self._weight_shape(weight)
        skip = weight_skip(weight, self.constants)
        if dims is None or len(dims) < 3:
            return _Role("conv_transpose", None, None, skip or "its weight's shape is not known")
        groups = max(int(attributes_of(entry).get("group", 1)), 1)
        swapped = (dims[1] * groups, dims[0] // groups, *dims[2:])
        attributes = conv_attributes(entry, swapped, None)
        geometry = conv_geometry(
            attributes,
            (dims[0], dims[1] * groups),
            bias=len(names) > 2 and bool(names[2]),
            shapes=(self._shape(entry, 0), self._output_shape(entry)),
            data_type=self._data_type(weight),
        )
        identity = self.constants.identity(weight) if weight in self.constants else None
        return _Role("conv_transpose", identity, geometry, skip)

    def _linear(self, entry: Entry) -> _Role:
        for at in (1, 0):
            weight = entry.proto.input[at]
            other = entry.proto.input[1 - at]
            if weight not in self.constants or other in self.constants:
                continue
            dims = self._weight_shape(weight)
            if dims is None or len(dims) != 2:
                continue
            data = self._shape(entry, 1 - at)
            geometry = linear_geometry(entry, dims, at, data, self._data_type(weight))
            skip = weight_skip(weight, self.constants)
            return _Role("linear", self.constants.identity(weight), geometry, skip)
        return _Role()

    def _joining(self, entry: Entry) -> Op:
        names = [name for name in entry.proto.input if name]
        if entry.op in POOLS:
            return "pool"
        if len(names) < 2 or any(name in self.constants for name in names):
            return "other"
        if entry.op in ("Add", "Sum"):
            shapes = {self.inferred.shapes.get(name) for name in names}
            return "add" if len(shapes) == 1 else "other"
        if entry.op == "Concat":
            axis = int(attributes_of(entry).get("axis", 0))
            shape = self._output_shape(entry)
            if axis < 0 and shape is not None:
                axis += len(shape)
            return "concat" if axis == 1 else "other"
        return "other"

    def _inner(
        self, owner: Entry, prefix: str, graph: GraphProto, taken: set[str]
    ) -> Iterator[Node]:
        """The convs of a subgraph: listed so that they are seen, never rewritten."""
        weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for index, proto in enumerate(graph.node):
            inner = Entry(proto.name or f"{proto.op_type}_{index}", proto, reads(proto))
            for attribute, body in subgraphs(proto):
                yield from self._inner(owner, f"{prefix}/{inner.name}/{attribute}", body, taken)
            if inner.op != "Conv" or len(proto.input) < 2:
                continue
            dims = weights.get(proto.input[1]) or self._weight_shape(proto.input[1])
            name = unique(f"{prefix}/{inner.name}", taken)
            geometry = None
            if dims is not None and len(dims) > 2:
                attributes = conv_attributes(inner, dims, None)
                geometry = conv_geometry(
                    attributes,
                    (dims[1] * attributes.groups, dims[0]),
                    bias=len(proto.input) > 2 and bool(proto.input[2]),
                    shapes=(None, None),
                    data_type=self._data_type(proto.input[1]),
                )
            yield Node(
                name=name,
                op="conv",
                inputs=(),
                output=f"{name}:0",
                kind="Conv",
                geometry=geometry,
                skip=f"inside the body of {owner.name} ({owner.op})",
            )


def refuse_quantised(document: Document, constants: Constants, where: str) -> None:
    """Refuse a model whose convolutions all have integer weights.

    Raises:
        UnsupportedError: it is such a model; says what to do.
    """
    plain = [entry for entry in document.entries if entry.op == "Conv"]
    flags: Mapping[str, bool] = {
        entry.name: quantised(entry, constants)
        for entry in (*plain, *(e for e in document.entries if e.op in QUANTISED_CONVS))
    }
    if flags and all(flags.values()):
        kinds = sorted({entry.op for entry in document.entries if entry.name in flags})
        behind = " behind DequantizeLinear" if kinds == ["Conv"] else ""
        raise UnsupportedError(
            f"a quantised model: all {len(flags)} of its convolutions have integer weights "
            f"({', '.join(kinds)}{behind})",
            where=where,
            hint="convert the floating-point model that it was made from, then quantise the result",
        )
