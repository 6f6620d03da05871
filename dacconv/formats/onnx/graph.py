"""Read an ONNX graph as a dacconv graph: nodes in the order of the file, edges, parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx import GraphProto, TensorProto

from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Document, Entry, entry_of, subgraphs, unique
from dacconv.formats.onnx.fixed_sizes import GraphFacts
from dacconv.formats.onnx.geometry import conv_attributes, conv_geometry
from dacconv.formats.onnx.inputs import declared_specs, default_notes
from dacconv.formats.onnx.layers import QUANTISED_CONVS
from dacconv.formats.onnx.load import version_notes
from dacconv.formats.onnx.roles import Role, role
from dacconv.graph.precision import BF16, FP16, INT8
from dacconv.graph.types import Graph, Node, ValueSpec

_HALVES: dict[int, str] = {TensorProto.FLOAT16: FP16, TensorProto.BFLOAT16: BF16}
_LAYERS = frozenset({"conv", "conv_transpose", "linear"})


def graph_of(document: Document, facts: GraphFacts, inputs: tuple[ValueSpec, ...]) -> Graph:
    """The whole graph; ONNX requires that the order of the file is one of execution."""
    return Graph(
        nodes=tuple(_nodes(document, facts)),
        inputs=inputs,
        outputs=document.outputs,
        order="execution",
        notes=document.notes + version_notes(document) + default_notes(document),
        fixed=all(
            spec.shape is not None and None not in spec.shape[1:]
            for spec in declared_specs(document)
        ),
    )


def _nodes(document: Document, facts: GraphFacts) -> Iterator[Node]:
    taken = {entry.name for entry in document.entries}
    owned: set[str] = set()
    for entry in document.entries:
        for attribute, body in subgraphs(entry.proto):
            yield from _subgraph_convs(entry, f"{entry.name}/{attribute}", body, facts, taken)
        node_role = role(entry, facts)
        operands = _operands(entry, node_role, facts)
        if not operands and node_role.op in _LAYERS:
            node_role = replace(node_role, skip=node_role.skip or "its input is a constant")
        elif not operands:
            node_role = Role()
        output = entry.writes[0] if entry.writes else ""
        yield Node(
            name=entry.name,
            op=node_role.op,
            inputs=operands,
            output=output,
            shape=facts.inferred.shapes.get(output),
            kind=entry.op,
            weight=node_role.weight,
            geometry=node_role.geometry,
            skip=node_role.skip,
            params=_params(entry, facts.constants, owned),
            attrs=node_role.attrs,
            precision=_stored_precision(entry, facts.constants) if node_role.op in _LAYERS else "",
        )


def _operands(entry: Entry, node_role: Role, facts: GraphFacts) -> tuple[str, ...]:
    """The values that a node reads and that are no constants: inputs, then captures.

    A node that only reads the fixed size of a value does not depend on it.
    """
    if entry.name in facts.sizes.size_only:
        return ()
    if node_role.op == "fill":
        return (entry.proto.input[0],)
    constants = facts.constants
    inputs = [name for name in entry.proto.input if name and name not in constants]
    explicit = set(inputs)
    captures = [n for n in entry.reads if n not in constants and n not in explicit]
    return (*inputs, *captures)


def _params(entry: Entry, constants: Constants, owned: set[str]) -> int:
    """The floating-point constant elements that this node is the first to use at runtime.

    Running statistics are not counted as parameters, as in PyTorch.
    """
    if entry.writes and entry.writes[0] in constants.computed:
        return 0
    total = 0
    reads = entry.reads[:3] if entry.op == "BatchNormalization" else entry.reads
    for name in reads:
        for root in constants.roots(name) if name in constants else ():
            if root not in owned:
                owned.add(root)
                total += constants.elements(root)
    return total


def _subgraph_convs(
    owner: Entry, prefix: str, graph: GraphProto, facts: GraphFacts, taken: set[str]
) -> Iterator[Node]:
    """The convs of a subgraph; they are in the report, but never rewritten."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for index, proto in enumerate(graph.node):
        own_name = proto.name or f"{proto.op_type}_{index}"
        for attribute, body in subgraphs(proto):
            yield from _subgraph_convs(
                owner, f"{prefix}/{own_name}/{attribute}", body, facts, taken
            )
        if proto.op_type != "Conv" or len(proto.input) < 2:
            continue
        inner = entry_of(own_name, proto)
        if inner.op != "Conv":
            continue
        own = weights.get(proto.input[1])
        dims = tuple(own.dims) if own is not None else facts.dims(proto.input[1])
        name = unique(f"{prefix}/{inner.name}", taken)
        geometry = None
        if dims is not None and len(dims) > 2:
            attributes = conv_attributes(inner, dims, None)
            data_type = own.data_type if own is not None else facts.data_type(proto.input[1])
            geometry = conv_geometry(
                attributes,
                (dims[1] * attributes.groups, dims[0]),
                bias=len(proto.input) > 2 and bool(proto.input[2]),
                shapes=(None, None),
                data_type=data_type,
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


def _stored_precision(entry: Entry, constants: Constants) -> str:
    """The precision that a layer's weight is stored in, where it is not computed in it."""
    if entry.op in QUANTISED_CONVS:
        return INT8
    for name in entry.proto.input[:2]:
        for step in constants.chain(name) if name in constants.computed else ():
            if step.op == "DequantizeLinear":
                return INT8
            if step.op == "Cast" and step.proto.input[0] in constants.document.tensors:
                stored = constants.document.tensors[step.proto.input[0]].data_type
                return _HALVES.get(stored, "")
    return ""
