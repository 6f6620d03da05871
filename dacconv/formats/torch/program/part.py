"""Part of an exported program: from values in the middle to values further on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind
from torch.utils import _pytree as pytree

from dacconv.errors import UnsupportedError
from dacconv.formats.torch.program.flow import in_place, written
from dacconv.formats.torch.program.graph import constant
from dacconv.formats.torch.program.ops import op_name
from dacconv.graph.types import Array

FRESH = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose2d", "linear", "matmul", "addmm",
     "batch_norm", "group_norm", "layer_norm", "instance_norm", "add", "sub", "mul", "div", "cat",
     "relu", "hardtanh", "hardswish", "silu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
)  # fmt: skip
"""Operators whose result is never a view: nobody else sees it when it is overwritten."""


def live(program: ExportedProgram, node: fx.Node) -> tuple[str, ...]:
    """The tensors from before ``node`` that it, what follows it or the outputs are made of.

    Weights come with every part, and what is no tensor, a size, is worked out again.

    Raises:
        UnsupportedError: the program overwrites what others may read, and is no plain dataflow.
    """
    _require_dataflow(program)
    nodes = list(program.graph.nodes)
    at = nodes.index(node)
    before, constants = set(nodes[:at]), _constants(program)
    boundary, seen = set[fx.Node](), set[fx.Node]()
    waiting = [read for later in nodes[at:] for read in later.all_input_nodes]
    while waiting:
        value = waiting.pop()
        if value in seen or value not in before or value.name in constants:
            continue
        seen.add(value)
        if isinstance(value.meta.get("val"), torch.Tensor):
            boundary.add(value)
        else:
            waiting += value.all_input_nodes
    return tuple(value.name for value in nodes[:at] if value in boundary)


def part(
    program: ExportedProgram, sources: Sequence[str], targets: Sequence[str] | None
) -> Callable[[Mapping[str, Array]], Any]:
    """A function from the values ``sources`` to a dict of those ``targets``, or to the outputs.

    Raises:
        UnsupportedError: a value is neither given nor computed, or the program cannot be cut.
    """
    _require_dataflow(program)
    by_name = {node.name: node for node in program.graph.nodes}
    ends = _outputs(program) if targets is None else {name: name for name in targets}
    missing = [name for name in (*sources, *ends.values()) if name not in by_name]
    if missing:
        raise UnsupportedError(f"the program has no value '{missing[0]}'")
    fed = [by_name[name] for name in sources]
    graph, constants = fx.Graph(), _constants(program)
    copies = {node: graph.placeholder(node.name) for node in fed}
    needed = _needed([by_name[name] for name in ends.values()], copies, constants)
    for node in program.graph.nodes:
        if node in needed and node not in copies:
            if node.name in constants:
                copies[node] = graph.get_attr(node.name)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output({key: copies[by_name[name]] for key, name in ends.items()})
    weights = {node.name: constants[node.name] for node in needed if node.name in constants}
    module = fx.GraphModule(weights, graph)
    copied = any(in_place(node) is not None for node in needed)

    def run(feeds: Mapping[str, Array]) -> Any:
        tensors = [_tensor(feeds[node.name], node, copy=copied) for node in fed]
        try:
            with torch.no_grad():
                values = module(*tensors)
        except RuntimeError as error:  # of a size that does not fit, say
            raise UnsupportedError(f"torch cannot run the program in parts: {error}") from error
        return values if targets is not None else _unflattened(program, values)

    return run


def _constants(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and lifted constants by the names of their placeholders."""
    specs = program.graph_signature.input_specs
    tensors = {spec.arg.name: constant(program, spec) for spec in specs}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _needed(
    ends: Sequence[fx.Node], sources: Mapping[fx.Node, Any], constants: Mapping[str, Any]
) -> set[fx.Node]:
    """What the ends are made of, down to what is given and to constants."""
    ancestors, waiting = set[fx.Node](), list(ends)
    while waiting:
        node = waiting.pop()
        if node in ancestors:
            continue
        ancestors.add(node)
        if node in sources or node.name in constants:
            continue
        if node.op != "call_function":
            raise UnsupportedError(f"value '{node.name}' is neither given nor computed")
        waiting += node.all_input_nodes
    return ancestors


def _require_dataflow(program: ExportedProgram) -> None:
    """Refuse what is not told by who reads whom: a value that is overwritten and read elsewhere."""
    for node in program.graph.nodes:
        if in_place(node) is None:
            continue
        target = written(node)
        own = target is not None and (op_name(target) in FRESH or in_place(target) is not None)
        if target is None or not own or len(target.users) > 1:
            raise UnsupportedError(f"'{node.name}' overwrites what others may read")


def _outputs(program: ExportedProgram) -> dict[str, str]:
    """The user's outputs that are computed, numbered, as names of values."""
    return {
        str(index): spec.arg.name
        for index, spec in enumerate(_returned(program))
        if not isinstance(spec.arg, ConstantArgument)
    }


def _returned(program: ExportedProgram) -> list[Any]:
    specs = program.graph_signature.output_specs
    return [spec for spec in specs if spec.kind is OutputKind.USER_OUTPUT]


def _unflattened(program: ExportedProgram, values: Mapping[str, Any]) -> Any:
    """The outputs in the structure in which the program returns them."""
    flat = [
        values.get(str(index), getattr(spec.arg, "value", None))
        for index, spec in enumerate(_returned(program))
    ]
    spec = program.call_spec.out_spec
    return flat if spec is None else pytree.tree_unflatten(flat, spec)


def _tensor(array: Array, node: fx.Node, *, copy: bool) -> torch.Tensor:
    array = np.ascontiguousarray(array)
    tensor = torch.from_numpy(array.copy() if copy or not array.flags.writeable else array)
    value = node.meta.get("val")
    return tensor.to(value.dtype) if isinstance(value, torch.Tensor) else tensor
