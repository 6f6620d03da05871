"""Blocks whose branches become one conv: a module that is a sum of branches and a tail.

In a module tree the sum of two branches is a line of Python in some ``forward``, which no edit
of layers can reach. But where all that a module does is the branches, their sum, and a tail of
modules or plain activations one after the other, the whole module can become an
``nn.Sequential`` of the merged conv and the same tail: RepVGG's, MobileOne's, ACNet's blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dacconv.formats.torch.convs import Spec, describe, from_spec
from dacconv.formats.torch.members import modules, named_children, named_modules, submodule
from dacconv.formats.torch.module.run import shared_copy
from dacconv.graph.types import Graph, Node, Rewrite

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
}
"""Calls that take nothing but their input, and the layers that do the same."""


@dataclass(frozen=True, slots=True)
class Block:
    """One call of a module that takes one tensor and returns one, and the nodes inside."""

    source: str
    result: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of a tail: a module by its name relative to the block, or an activation."""

    module: str = ""
    activation: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The block that an edit turns into a Sequential: its name, and what follows the conv."""

    path: str
    tail: tuple[Step, ...]


def find_block(
    edit: Rewrite, graph: Graph, blocks: Mapping[str, Block], module: nn.Module
) -> Found | str:
    """The smallest block that the edit covers but for a tail; or why there is none."""
    absorbed = {edit.target, *edit.drop}
    around = [path for path, block in blocks.items() if path and absorbed <= set(block.nodes)]
    if not around:
        return "the sum is Python code outside any block that takes one tensor and returns one"
    reasons = []
    for path in sorted(around, key=lambda path: (len(blocks[path].nodes), -len(path))):
        found = _tail(edit, graph, path, blocks) if blocks[path].source == edit.source else None
        reason = _why_not(path, graph, blocks[path], module)
        if found is not None and reason is None:
            return Found(path, found)
        kind = type(submodule(module, path)).__name__
        reasons.append(reason or f"'{path}' ({kind}) does more than that sum of branches")
    return f"the sum is Python code in a forward: {reasons[0]}"


def _why_not(path: str, graph: Graph, block: Block, module: nn.Module) -> str | None:
    """What stands against replacing a block as a whole."""
    own = submodule(module, path)
    if own._forward_hooks or own._forward_pre_hooks or own._backward_hooks:
        return f"'{path}' has hooks, which a replacement would lose"
    inside = set(block.nodes)
    outside = [node for node in graph.nodes if node.name not in inside]
    if any(node.name.startswith(f"{path}.") for node in outside):
        return f"parts of '{path}' are called from outside it"
    made = {node.output for node in graph.nodes if node.name in inside} - {block.result}
    if any(made & set(node.inputs) for node in outside) or made & set(graph.outputs):
        return f"values inside '{path}' are read outside it"
    within = {id(each) for each in modules(own)}
    for name, each in named_modules(module, duplicates=True):
        shared = id(each) in within and name != path and not name.startswith(f"{path}.")
        if shared and each is not own:
            return f"'{name}' is also part of '{path}'"
    return None


def _tail(
    edit: Rewrite, graph: Graph, path: str, blocks: Mapping[str, Block]
) -> tuple[Step, ...] | None:
    """What the block does with the sum, step by step; None where that is no chain of steps."""
    absorbed = {edit.target, *edit.drop}
    block = blocks[path]
    left = [n for n in graph.nodes if n.name in set(block.nodes) - absorbed]
    value = next(node.output for node in graph.nodes if node.name == edit.target)
    steps: list[Step] = []
    while value != block.result:
        readers = [node for node in left if value in node.inputs]
        if (inner := _module_step(value, readers, left, path, blocks)) is not None:
            step, value = inner
            steps.append(step)
        elif len(readers) == 1 and readers[0].inputs == (value,):
            node, value = readers[0], readers[0].output
            if node.op == "identity":
                continue
            if node.kind not in ACTIVATIONS:
                return None
            steps.append(Step(activation=node.kind))
        else:
            return None
    return tuple(steps)


def _module_step(
    value: str,
    readers: Sequence[Node],
    left: Iterable[Node],
    path: str,
    blocks: Mapping[str, Block],
) -> tuple[Step, str] | None:
    """The largest module inside the block that takes the value, and what it makes of it."""
    known = {node.name: node for node in left}
    best: tuple[int, str] | None = None
    for name, inner in blocks.items():
        takes = name.startswith(f"{path}.") and inner.source == value and inner.nodes
        if not takes or not set(inner.nodes) <= known.keys():
            continue
        if not {node.name for node in readers} <= set(inner.nodes):
            continue
        made = {value} | {known[node].output for node in inner.nodes}
        closed = all(set(known[node].inputs) <= made for node in inner.nodes)
        if closed and (best is None or len(inner.nodes) > best[0]):
            best = (len(inner.nodes), name)
    if best is None:
        return None
    return Step(module=best[1][len(path) + 1 :]), blocks[best[1]].result


def sequential(
    convs: nn.Module, tail: Iterable[Step], block: nn.Module
) -> tuple[nn.Module, dict[str, str]]:
    """The merged conv and the tail; and which of its layers were which modules of the block."""
    layers = list(convs) if type(convs) is nn.Sequential else [convs]
    kept: dict[str, str] = {}
    for step in tail:
        if step.module:
            kept[str(len(layers))] = step.module
            layers.append(submodule(block, step.module))
        else:
            layers.append(ACTIVATIONS[step.activation]())
    made = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    made.training = block.training
    return made, kept


def describe_replaced(
    module: nn.Module,
    name: str,
    kept: Mapping[str, Mapping[str, str]],
    specs: Mapping[str, Spec],
) -> Spec:
    """The spec of the replaced module ``name``, the layers of a block that stayed among it.

    ``specs`` are those of the layers inside what stayed that were replaced themselves, by
    their names in the original.
    """
    made = submodule(module, name)
    stays = kept.get(name, {})
    if not stays:
        return _described(made)
    layers: list[Spec] = []
    for index, layer in named_children(made):
        old = stays.get(index)
        if old is None:
            layers.append(_described(layer))
            continue
        place = f"{name}.{old}"
        inside = {key[len(place) :]: spec for key, spec in specs.items() if key.startswith(place)}
        inside = {key[1:]: spec for key, spec in inside.items() if key[:1] in ("", ".")}
        layers.append({"type": "Kept", "name": old, "inside": inside})
    return {"type": "Sequential", "layers": layers}


def _described(module: nn.Module) -> Spec:
    if type(module) is nn.Sequential:
        return {"type": "Sequential", "layers": [_described(layer) for layer in module]}
    if type(module) in ACTIVATIONS.values():
        return {"type": type(module).__name__}
    return describe(module)


def rebuilt(spec: Spec, old: nn.Module) -> nn.Module:
    """What a spec says takes the place of ``old``, of which it may keep parts.

    KeyError or AttributeError on a spec that does not fit.
    """
    kind = spec["type"]
    if kind == "Sequential":
        return nn.Sequential(*(rebuilt(layer, old) for layer in spec["layers"]))
    if kind == "Kept":
        part = submodule(old, spec["name"])
        inside: Mapping[str, Spec] = spec["inside"]
        if "" in inside:
            return rebuilt(inside[""], part)
        part = shared_copy(part) if inside else part
        for name in sorted(inside):
            owner, _, last = name.rpartition(".")
            new = rebuilt(inside[name], submodule(part, name))
            submodule(part, owner)._modules[last] = new
        return part
    plain = {each.__name__: each for each in ACTIVATIONS.values()}
    return plain[kind]() if kind in plain else from_spec(spec)
