"""Model-local functions: refused where they grow without bound, inlined where they hold a conv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from dacconv.errors import FormatError
from dacconv.formats.onnx.document import DEFAULT_DOMAINS, subgraphs
from dacconv.formats.onnx.tensors import Tensor, value_info

LARGEST_INLINED = 1 << 28
"""The most bytes that the calls of local functions may have once they are all inlined."""
DEEPEST_CALLS = 200
"""The most functions that may call each other in one chain."""
_INLINED_OPERATORS = frozenset({"Conv", "BatchNormalization"})
_Key = tuple[str, str]
"""The domain and the name of a function."""


def check_functions(nodes: Sequence[NodeProto], functions: Iterable[FunctionProto]) -> None:
    """Check that the calls of local functions end, and that inlining them stays bounded.

    ONNX Runtime inlines every function when it loads a model, so a few functions that call each
    other twice would fill any memory.

    Raises:
        FormatError: a function calls itself, calls are nested too deeply, or the inlined nodes
            would be too large.
    """
    by_key = {(f.domain, f.name): f for f in functions}
    calls = {key: _calls(function.node) for key, function in by_key.items()}
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for key in _callees_first(by_key, calls):
        inner = [each for each in calls[key] if each in by_key]
        depths[key] = 1 + max((depths[each] for each in inner), default=0)
        if depths[key] > DEEPEST_CALLS:
            raise FormatError(
                f"its local functions call each other in a chain of more than {DEEPEST_CALLS}",
                hint="inline the functions when you export the model",
            )
        sizes[key] = by_key[key].ByteSize() + _inlined_size(calls[key], sizes)
    size = _inlined_size(_calls(nodes), sizes)
    if size > LARGEST_INLINED:
        raise FormatError(
            f"its local functions have {size:,} bytes once every call is inlined; dacconv reads "
            f"at most {LARGEST_INLINED:,}",
            hint="the file is malicious, or its functions hold large constants: inline them when "
            "you export the model",
        )


def _inlined_size(calls: Mapping[_Key, int], sizes: Mapping[_Key, int]) -> int:
    return sum(count * sizes.get(key, 0) for key, count in calls.items())


def _callees_first(
    functions: Mapping[_Key, FunctionProto], calls: Mapping[_Key, Mapping[_Key, int]]
) -> list[_Key]:
    """The functions in an order in which each comes after those that it calls."""
    ordered: list[_Key] = []
    state: dict[_Key, bool] = {}  # False while the functions that it calls are visited
    for root in functions:
        stack = [root]
        while stack:
            key = stack[-1]
            if key not in state:
                state[key] = False
                for callee in calls[key]:
                    if callee in functions and not state.get(callee, False):
                        if callee in state:
                            raise FormatError(
                                f"its local function {callee[1]!r} calls itself, directly or "
                                "through others",
                                hint="ONNX does not allow that: the file is damaged or malicious",
                            )
                        stack.append(callee)
                continue
            stack.pop()
            if not state[key]:
                state[key] = True
                ordered.append(key)
    return ordered


def inline_conv_functions(
    header: ModelProto,
    nodes: Sequence[NodeProto],
    tensors: Mapping[str, Tensor],
    rest: GraphProto,
) -> tuple[list[NodeProto], list[str]]:
    """The nodes with every called function that holds a conv inlined, and notes about that.

    The inlined functions are removed from ``header``. Inlining is lossless; the functions that
    hold no conv stay as they are.
    """
    functions = {(f.domain, f.name): f for f in header.functions}
    selected = _holding_convs(functions) & _called(nodes, functions)
    if not selected:
        return list(nodes), []
    import onnx.inliner

    model = ModelProto()
    model.CopyFrom(header)
    model.graph.CopyFrom(rest)
    model.graph.node.extend(nodes)
    inputs = {value.name for value in rest.input}
    # inputs in the place of the weights, so that the inliner does not use their names
    model.graph.input.extend(value_info(t) for name, t in tensors.items() if name not in inputs)
    try:
        inlined = onnx.inliner.inline_selected_functions(model, sorted(selected))
    except Exception as error:  # the inliner's C++ errors have no common type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        return list(nodes), [f"convs inside local functions stay as they are: {reason}"]
    header.CopyFrom(inlined)
    header.ClearField("graph")
    names = ", ".join(sorted(name for _, name in selected))
    return list(inlined.graph.node), [f"inlined the local functions that hold convs: {names}"]


def _holding_convs(functions: Mapping[_Key, FunctionProto]) -> set[_Key]:
    """The functions in which a conv lies, directly or by way of another function."""
    callers: dict[_Key, list[_Key]] = {}
    holding: set[_Key] = set()
    for key, function in functions.items():
        for callee in _calls(function.node):
            callers.setdefault(callee, []).append(key)
            if callee[1] in _INLINED_OPERATORS and callee[0] in DEFAULT_DOMAINS:
                holding.add(key)
    pending = list(holding)
    while pending:
        fresh = set(callers.get(pending.pop(), ())) - holding
        holding |= fresh
        pending += fresh
    return holding


def _called(nodes: Sequence[NodeProto], functions: Mapping[_Key, FunctionProto]) -> set[_Key]:
    """The functions that the nodes call, directly or by way of another function."""
    called: set[_Key] = set()
    pending = [_calls(nodes)]
    while pending:
        for key in pending.pop():
            if key in functions and key not in called:
                called.add(key)
                pending.append(_calls(functions[key].node))
    return called


def _calls(nodes: Sequence[NodeProto]) -> Counter[_Key]:
    """How often the nodes and their subgraphs use each operator or function."""
    calls = Counter((node.domain, node.op_type) for node in nodes)
    for node in nodes:
        for _, graph in subgraphs(node):
            calls.update(_calls(graph.node))
    return calls
