"""Runs the fusions on a view of the graph until nothing changes, and collects the edits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dacconv.fusions.links import is_bias_of_matmul, is_vector
from dacconv.fusions.view import Merge, Obstacle, Site, View, Weights
from dacconv.graph.findings import Fused
from dacconv.graph.types import LAYER_OPS, Conv, Graph, Node, Op, Refusal, Rewrite

Find = Callable[[View, Site], Merge | Obstacle | None]
EditRefusal = Callable[[Rewrite, Sequence[Rewrite]], str | None]
"""The reason why a model's format cannot hold an edit, one of several; None where it can."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """A transform: ``find`` is called for every site whose op is one of ``anchors``.

    ``find`` returns the merge, the obstacle that prevents it, or None if there is nothing to merge.
    """

    name: str
    anchors: tuple[Op, ...]
    find: Find


@dataclass(frozen=True, slots=True)
class FusionPlan:
    """The edits to make, a summary of each, and the nodes that cannot be merged."""

    rewrites: tuple[Rewrite, ...]
    fused: tuple[Fused, ...]
    refusals: tuple[Refusal, ...]


def plan_fusions(
    graph: Graph,
    weights: Weights,
    fusions: Sequence[Fusion],
    edit_refusal: EditRefusal = lambda edit, among: None,
) -> FusionPlan:
    """Everything that can be merged without changing what the graph computes.

    Of an edit that ``edit_refusal`` has a reason against, the last merge is left out and the
    smaller merges before it remain.
    """
    refused: dict[frozenset[str], Refusal] = {}
    while True:
        view = View(graph, weights)
        obstacles = _run(view, fusions, refused)
        sites = [site for name in view.names() if (site := view.get(name)) is not None]
        merged = [(site, site.replacement) for site in sites if isinstance(site.replacement, Conv)]
        edits = tuple(_rewrite(view, site, conv) for site, conv in merged)
        new_refusals = {
            frozenset(edit.drop): Refusal(edit.target, reason)
            for edit in edits
            if (reason := edit_refusal(edit, edits)) is not None
        }
        if not new_refusals:
            fused = tuple(
                Fused(site.title, edit.drop, edit.reason)
                for (site, _), edit in zip(merged, edits, strict=True)
            )
            return FusionPlan(edits, fused, _refusals(view, obstacles, refused.values()))
        refused.update(new_refusals)  # these are not merged again, so the loop ends


def _run(
    view: View, fusions: Sequence[Fusion], refused: dict[frozenset[str], Refusal]
) -> list[Obstacle]:
    """Merge until nothing changes; return the obstacles of the last pass."""
    sizes = {len(nodes) for nodes in refused}
    while True:  # every merge leaves fewer sites
        obstacles: list[Obstacle] = []
        changed = False
        for name in view.names():
            for fusion in fusions:
                site = view.get(name)
                if site is None or not site.inputs or site.op not in fusion.anchors:
                    continue
                step = fusion.find(view, site)
                if isinstance(step, Obstacle):
                    obstacles.append(step)
                elif step is not None and not _is_refused(step.parts, refused, sizes):
                    view.apply(step)
                    changed = True
        if not changed:
            return obstacles


def _is_refused(
    parts: Sequence[Site], refused: Mapping[frozenset[str], Refusal], sizes: set[int]
) -> bool:
    """Whether these parts form one of the refused edits, whose numbers of nodes are ``sizes``."""
    if sum(part.size for part in parts) not in sizes:
        return False  # the names are collected only where the number of nodes agrees
    return frozenset(node.name for part in parts for node in part.nodes) in refused


def _rewrite(view: View, site: Site, conv: Conv) -> Rewrite:
    alias = {
        value: other
        for value, other in view.aliases(site).items()
        if view.readers(other) or view.is_output(other)
    }
    nodes = site.nodes
    drop = tuple(node.name for node in nodes)
    return Rewrite(site.name, site.inputs[0], ((conv,),), drop, _summary(nodes), alias)


def _summary(nodes: Sequence[Node]) -> str:
    """Such as ``2 Conv, 3 BatchNormalization, 1 Add``."""
    kinds = Counter(node.kind or node.op for node in nodes)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _refusals(
    view: View, obstacles: Iterable[Obstacle], refused: Iterable[Refusal]
) -> tuple[Refusal, ...]:
    """One refusal per node, in order of execution; every affine that remains has one."""
    reasons: dict[str, list[str]] = {}
    for refusal in refused:
        reasons.setdefault(refusal.node, []).append(refusal.reason)
    for obstacle in obstacles:
        reasons.setdefault(obstacle.node, []).append(obstacle.reason)
    result: list[Refusal] = []
    for name in view.names():
        site = view.get(name)
        if site is None:
            continue
        texts = list(dict.fromkeys(reasons.get(name, ())))
        if site.op == "affine":
            texts = texts or _reasons_without_conv(view, site)
            names = [node.name for node in site.nodes if node.op == "affine"]
        else:
            names = [name]
        result += [Refusal(each, "; ".join(texts)) for each in names if texts]
    return tuple(result)


def _reasons_without_conv(view: View, site: Site) -> list[str]:
    """The reason why an affine that no transform matches remains; none for a scalar constant."""
    refusal = view.refusal(site)
    if refusal is not None:
        return [refusal]
    producer = view.producer(site.inputs[0])
    if not is_vector(view.affine(site)) or is_bias_of_matmul(view, producer, site):
        return []
    before = "an input of the model" if producer is None else _description(producer)
    readers = [each for name in view.readers(site.output) if (each := view.get(name))]
    after = ", ".join(dict.fromkeys(_description(each) for each in readers)) or "an output"
    return [f"no conv next to it: it is between {before} and {after}"]


def _description(site: Site) -> str:
    kind = site.node.kind or site.op
    return f"{site.name} ({kind})" if site.op not in LAYER_OPS else site.title
