"""Editing a module tree: plain layers in the place of layers, everything else shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from dacconv.errors import UnsupportedError
from dacconv.formats.torch.convs import Builder
from dacconv.formats.torch.members import modules, named_modules, submodule
from dacconv.formats.torch.module.blocks import Block, Step, find_block, sequential
from dacconv.formats.torch.module.run import shared_copy
from dacconv.graph.types import LAYER_OPS, Array, Branches, Graph, Node, Rewrite, convs_of

_KEEPERS = ("affine", "identity", "pad", "pool")


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What one edit does to the tree: ``branches`` at ``at``, and nothing left at ``emptied``.

    ``like`` is the layer that the new ones are built after. Where ``at`` is a whole block,
    ``tail`` follows the chain there, else it is None.
    """

    at: str
    branches: Branches
    emptied: tuple[str, ...]
    like: str
    tail: tuple[Step, ...] | None = None


@dataclass(frozen=True, eq=False)
class Tree:
    """A module, the graph of its run, which nodes are modules, and which modules are blocks."""

    module: nn.Module
    graph: Graph
    sites: Mapping[str, str]
    blocks: Mapping[str, Block]

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """The place of each node in the order of the run."""
        return {node.name: index for index, node in enumerate(self.graph.nodes)}

    @cached_property
    def calls(self) -> Mapping[str, int]:
        """How many nodes are calls of each module."""
        return Counter(self.sites.values())

    @cached_property
    def readers(self) -> Mapping[str, int]:
        """How often each value is read."""
        return Counter(value for node in self.graph.nodes for value in node.inputs)

    @cached_property
    def weights(self) -> Mapping[str, frozenset[str]]:
        """The modules, or else the nodes, that have each weight."""
        owners: dict[str, set[str]] = {}
        for node in self.graph.nodes:
            if node.weight:
                owners.setdefault(node.weight, set()).add(self.sites.get(node.name, node.name))
        return {weight: frozenset(names) for weight, names in owners.items()}

    def nodes(self, edit: Rewrite) -> list[Node] | None:
        """The nodes that an edit replaces, in order; None where there is no such node."""
        places = [self.positions.get(name) for name in {edit.target, *edit.drop}]
        if None in places:
            return None
        return [self.graph.nodes[place] for place in sorted(p for p in places if p is not None)]


@dataclass(frozen=True, slots=True, eq=False)
class Edited:
    """The new tree, and the names of the modules in it that changed.

    ``kept`` maps a block that became a Sequential to which of its layers were which modules
    of the block: ``{"stage0": {"1": "nonlinearity"}}``.
    """

    module: nn.Module
    changed: frozenset[str]
    kept: Mapping[str, Mapping[str, str]]


def rewrite_refusal(edit: Rewrite, tree: Tree, among: Sequence[Rewrite]) -> str | None:
    """The reason why an edit, one ``among`` others, cannot be made; None where it can."""
    place = _place(edit, tree, among)
    return place if isinstance(place, str) else None


def rewrite_module(tree: Tree, edits: Sequence[Rewrite]) -> Edited:
    """A copy of the module with the edits made.

    Raises:
        UnsupportedError: an edit does not fit a module tree, or two contradict each other.
    """
    module, sites = tree.module, tree.sites
    chains: dict[str, Place] = {}
    emptied: set[str] = set()
    edited: set[str] = set()
    for edit in edits:
        place = _place(edit, tree, edits)
        if isinstance(place, str):
            raise UnsupportedError(place, where=edit.target)
        if place.at in chains and not _same(chains[place.at].branches, place.branches):
            raise UnsupportedError(
                "a module that is called several times would need different weights per call",
                where=edit.target,
            )
        chains[place.at] = place
        emptied.update(place.emptied)
        edited.update((edit.target, *edit.drop))
    layers = {path for path, place in chains.items() if place.tail is None}
    _require_all_sites({*layers, *emptied}, sites, edited)
    if emptied & chains.keys():
        raise UnsupportedError("edits overlap", where=min(emptied & chains.keys()))
    made = shared_copy(module)
    builder = Builder()
    for path in layers:
        place = chains[path]
        new = builder.branches(place.branches, submodule(made, place.like))
        replace_module(made, path, new)
    for path in sorted(emptied):
        replace_module(made, path, nn.Identity().train(submodule(made, path).training))
    blocks = [place for place in chains.values() if place.tail is not None]
    changed = {*layers, *emptied}
    kept: dict[str, Mapping[str, str]] = {}
    for place in sorted(blocks, key=lambda place: -len(place.at)):  # inner ones first
        changed = _replace_block(made, place, builder, changed, kept)
    return Edited(made, frozenset(changed), kept)


def _replace_block(
    made: nn.Module,
    place: Place,
    builder: Builder,
    changed: set[str],
    kept: dict[str, Mapping[str, str]],
) -> set[str]:
    """Put the merged conv and the tail in the place of a block; the names that changed then."""
    block = submodule(made, place.at)
    conv = builder.branches(place.branches, submodule(made, place.like))
    new, stays = sequential(conv, place.tail or (), block)
    replace_module(made, place.at, new)
    kept[place.at] = stays
    moved = {place.at}
    for name in changed:
        if not name.startswith(f"{place.at}."):
            moved.add(name)
            continue
        inner = name[len(place.at) + 1 :]
        for index, old in stays.items():  # an edit inside what stays goes along with it
            if inner == old or inner.startswith(f"{old}."):
                moved.add(f"{place.at}.{index}{inner[len(old) :]}")
    return moved


def replace_module(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module at ``path`` is registered, under all its names.

    Raises:
        UnsupportedError: the module is the root, which has no place to be replaced in.
    """
    old = submodule(root, path)
    if old is root:
        raise UnsupportedError("the model is this one layer; put it in an nn.Sequential first")
    for owner, name in list(_places(root, old)):
        owner._modules[name] = new


def _places(root: nn.Module, wanted: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for owner in modules(root):
        for name, child in owner._modules.items():
            if child is wanted:
                yield owner, name


def names_of(root: nn.Module, path: str) -> tuple[str, ...]:
    """Every qualified name under which the module at ``path`` is registered."""
    wanted = submodule(root, path)
    return tuple(n for n, m in named_modules(root, duplicates=True) if m is wanted)


def _place(edit: Rewrite, tree: Tree, among: Sequence[Rewrite]) -> Place | str:
    """Where an edit goes in the tree, or why it cannot go anywhere."""
    if len(edit.branches) != 1 and not edit.own_layers:
        return "a sum of several branches has no plain torch.nn layer"
    nodes = tree.nodes(edit)
    if nodes is None:
        return "names a node that the model does not have"
    blocked = next((node for node in nodes if node.skip), None)
    if blocked is not None:
        return f"{blocked.name}: {blocked.skip}"
    layers = [node for node in nodes if node.op in LAYER_OPS and node.name in tree.sites]
    if not layers:
        return "there is no conv whose place the new one could take"
    main = max(layers, key=lambda n: n.geometry.kernel if n.geometry else ())
    at = tree.sites[main.name]
    if all(node.name in tree.sites for node in nodes) or edit.alias:
        others = tuple(tree.sites[n.name] for n in nodes if n is not main and n.name in tree.sites)
        return _not_layers(edit, nodes, tree, among) or Place(at, edit.branches, others, at)
    found = find_block(edit, tree.graph, tree.blocks, tree.module)
    if isinstance(found, str):
        return found
    return Place(found.path, edit.branches, (), at, found.tail)


def _not_layers(
    edit: Rewrite, nodes: Sequence[Node], tree: Tree, among: Sequence[Rewrite]
) -> str | None:
    """Why the dropped nodes are not a chain of layers, each with a place of its own."""
    for node in nodes:
        if node.name not in tree.sites or node.op not in LAYER_OPS + _KEEPERS:
            return f"'{node.name}' ({node.kind}) is a call in Python code, not a torch.nn layer"
    bridged = [n for n in nodes if n.output in edit.alias and n.op in _KEEPERS]
    for node in bridged:  # what it passes on is what it reads: an Identity in its place
        if node.inputs != (edit.alias[node.output],):
            return f"'{node.name}' does not read the value that replaces it"
    chain = [n for n in nodes if n not in bridged]
    if reason := _not_a_chain(edit, chain, tree):
        return reason
    return _shared(edit, nodes, tree, among) if len(nodes) > 1 else None


def _shared(
    edit: Rewrite, nodes: Sequence[Node], tree: Tree, among: Sequence[Rewrite]
) -> str | None:
    """The reason why layers cannot be merged: they are used elsewhere, where they would be missing.

    Layers that are always called together can be merged, if the same happens at all their calls.
    """
    paths = [tree.sites[node.name] for node in nodes]
    for node in nodes:
        if node.weight and len(tree.weights[node.weight]) > 1:
            return f"the weight of '{node.name}' is shared"
    repeated = next((path for path in paths if tree.calls[path] > 1), None)
    if repeated is None:
        return None
    twins = 0
    for other in among:
        if tree.sites.get(other.target) == tree.sites[edit.target]:
            theirs = [tree.sites.get(node.name) for node in tree.nodes(other) or ()]
            twins += theirs == paths and _same(other.branches, edit.branches)
    if all(tree.calls[path] == twins for path in paths):
        return None
    return f"module '{repeated}' is called several times, not always with the same layers beside it"


def _not_a_chain(edit: Rewrite, nodes: Sequence[Node], tree: Tree) -> str | None:
    """Why the dropped nodes are not one chain from source to target with no other reader."""
    value = edit.source
    for index, node in enumerate(nodes):
        if node.inputs != (value,):
            return f"'{node.name}' does not read '{value}' alone"
        value = node.output
        last = index == len(nodes) - 1
        if not last and (tree.readers.get(value) != 1 or value in tree.graph.outputs):
            return f"the output of '{node.name}' is also used elsewhere"
    if not nodes or nodes[-1].name != edit.target:
        return f"'{edit.target}' is not the last of the nodes that are dropped"
    return None


def _same(first: Branches, second: Branches) -> bool:
    """Whether two sums of chains would become the same module."""
    convs = [list(convs_of(branches)) for branches in (first, second)]
    kinds = [[type(step) for chain in branches for step in chain] for branches in (first, second)]
    if len(convs[0]) != len(convs[1]) or kinds[0] != kinds[1] or len(first) != len(second):
        return False
    return all(
        np.array_equal(a.weight, b.weight)
        and (a.bias is b.bias or _equal(a.bias, b.bias))
        and (a.stride, a.padding, a.dilation, a.groups)
        == (b.stride, b.padding, b.dilation, b.groups)
        for a, b in zip(*convs, strict=True)
    )


def _equal(first: Array | None, second: Array | None) -> bool:
    return first is not None and second is not None and np.array_equal(first, second)


def _require_all_sites(
    paths: Iterable[str], sites: Mapping[str, str], edited: Iterable[str]
) -> None:
    """A module is replaced for all its calls, so all its calls must be edited."""
    done = set(edited)
    for path in paths:
        left = [node for node, at in sites.items() if at == path and node not in done]
        if left:
            raise UnsupportedError(
                f"module '{path}' is also called as '{left[0]}', which is not edited",
                hint="a module is replaced at all its calls or at none",
            )
