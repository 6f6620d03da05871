"""Model-local functions: inlined when a convolution or BatchNormalization lies inside one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from dacconv.formats.onnx.document import subgraphs
from dacconv.formats.onnx.tensors import Tensor, value_info

_WANTED = frozenset({"Conv", "BatchNormalization"})
_Key = tuple[str, str]


def inline_conv_functions(
    header: ModelProto,
    nodes: Sequence[NodeProto],
    tensors: Mapping[str, Tensor],
    rest: GraphProto,
) -> tuple[list[NodeProto], list[str]]:
    """The nodes with every reached function that holds a conv inlined, and notes on that.

    ``header`` loses the functions that went. Inlining is lossless; the functions that hold
    no conv stay as they are.
    """
    functions = {(f.domain, f.name): f for f in header.functions}
    wanted = _holding_convs(functions) & _reached(nodes, functions)
    if not wanted:
        return list(nodes), []
    import onnx.inliner

    model = ModelProto()
    model.CopyFrom(header)
    model.graph.CopyFrom(rest)
    model.graph.node.extend(nodes)
    inputs = {value.name for value in rest.input}
    # stand-ins for the weights: the inliner must know that their names are taken
    stand_ins = [value_info(t) for name, t in tensors.items() if name not in inputs]
    model.graph.input.extend(stand_ins)
    try:
        inlined = onnx.inliner.inline_selected_functions(model, sorted(wanted))
    except Exception as error:  # the inliner's C++ errors have no common type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        return list(nodes), [f"convs inside local functions stay as they are: {reason}"]
    header.CopyFrom(inlined)
    header.ClearField("graph")
    names = ", ".join(sorted(name for _, name in wanted))
    return list(inlined.graph.node), [f"inlined the local functions that hold convs: {names}"]


def _holding_convs(functions: Mapping[_Key, FunctionProto]) -> set[_Key]:
    """The functions in which a conv lies, directly or by way of another function."""
    holding: set[_Key] = set()
    size = -1
    while len(holding) > size:
        size = len(holding)
        for key, function in functions.items():
            calls = _calls(function.node)
            if calls & holding or any(op in _WANTED and d in ("", "ai.onnx") for d, op in calls):
                holding.add(key)
    return holding


def _reached(nodes: Sequence[NodeProto], functions: Mapping[_Key, FunctionProto]) -> set[_Key]:
    reached: set[_Key] = set()
    waiting = [_calls(nodes)]
    while waiting:
        for key in waiting.pop():
            if key in functions and key not in reached:
                reached.add(key)
                waiting.append(_calls(functions[key].node))
    return reached


def _calls(nodes: Sequence[NodeProto]) -> set[_Key]:
    calls = {(node.domain, node.op_type) for node in nodes}
    for node in nodes:
        for _, graph in subgraphs(node):
            calls |= _calls(graph.node)
    return calls
