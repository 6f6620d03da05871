"""Runs the fusions on a view of the graph until nothing changes; yields edits and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dacconv.fusions.view import Merge, Obstacle, Site, View, Weights
from dacconv.fusions.walk import is_bias_of_matmul, is_vector
from dacconv.graph.findings import Fused
from dacconv.graph.types import LAYER_OPS, Conv, Graph, Node, Op, Refusal, Rewrite

Find = Callable[[View, Site], Merge | Obstacle | None]
Allowed = Callable[[Rewrite], str | None]
"""Why a model's format cannot take an edit, or None where it can."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """A transform: it is tried at every site whose op is one of ``anchors``."""

    name: str
    anchors: tuple[Op, ...]
    find: Find


@dataclass(frozen=True, slots=True)
class Fusing:
    """The outcome: the edits to make, what each merges, and what was left as it was."""

    rewrites: tuple[Rewrite, ...]
    fused: tuple[Fused, ...]
    refusals: tuple[Refusal, ...]


def plan_fusions(
    graph: Graph,
    weights: Weights,
    fusions: Sequence[Fusion],
    allowed: Allowed = lambda _: None,
) -> Fusing:
    """Everything that can be merged without changing what the graph computes.

    An edit that ``allowed`` turns down is taken apart again: its last step is left out and
    the smaller merges that led to it are kept.
    """
    denied: dict[frozenset[str], Refusal] = {}
    while True:
        view = View(graph, weights)
        obstacles = _run(view, fusions, denied)
        sites = [site for name in view.names() if (site := view.get(name)) is not None]
        merged = [(site, site.becomes) for site in sites if isinstance(site.becomes, Conv)]
        edits = tuple(_rewrite(view, site, conv) for site, conv in merged)
        turned_down = {
            frozenset(edit.drop): Refusal(edit.target, reason)
            for edit in edits
            if (reason := allowed(edit)) is not None
        }
        if not turned_down:
            fused = tuple(
                Fused(site.title, edit.drop, edit.reason)
                for (site, _), edit in zip(merged, edits, strict=True)
            )
            return Fusing(edits, fused, _refusals(view, obstacles, denied.values()))
        denied.update(turned_down)  # these are not merged again, so this comes to an end


def _run(
    view: View, fusions: Sequence[Fusion], denied: dict[frozenset[str], Refusal]
) -> list[Obstacle]:
    """Merge to the fixed point; return what stood in the way at the last."""
    sizes = {len(nodes) for nodes in denied}
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
                elif step is not None and not _is_denied(step.parts, denied, sizes):
                    view.apply(step)
                    changed = True
        if not changed:
            return obstacles


def _is_denied(
    parts: Sequence[Site], denied: Mapping[frozenset[str], Refusal], sizes: set[int]
) -> bool:
    """Whether these parts make an edit that was turned down; ``sizes`` are those of ``denied``."""
    if sum(part.size for part in parts) not in sizes:
        return False  # the names are collected only where the number of nodes agrees
    return frozenset(node.name for part in parts for node in part.absorbed) in denied


def _rewrite(view: View, site: Site, conv: Conv) -> Rewrite:
    alias = {
        value: other
        for value, other in view.aliases(site).items()
        if view.readers(other) or view.is_output(other)
    }
    nodes = site.absorbed
    drop = tuple(node.name for node in nodes)
    return Rewrite(site.name, site.inputs[0], ((conv,),), drop, _summary(nodes), alias)


def _summary(nodes: Sequence[Node]) -> str:
    """Such as ``2 Conv, 3 BatchNormalization, 1 Add``."""
    kinds = Counter(node.kind or node.op for node in nodes)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _refusals(
    view: View, obstacles: Iterable[Obstacle], denied: Iterable[Refusal]
) -> tuple[Refusal, ...]:
    """One per node, in order of execution; every affine that is left has one."""
    reasons: dict[str, list[str]] = {}
    for refusal in denied:
        reasons.setdefault(refusal.node, []).append(refusal.reason)
    for obstacle in obstacles:
        reasons.setdefault(obstacle.node, []).append(obstacle.reason)
    result: list[Refusal] = []
    for name in view.names():
        site = view.get(name)
        if site is None:
            continue
        told = list(dict.fromkeys(reasons.get(name, ())))
        if site.op == "affine":
            told = told or _why_alone(view, site)
            names = [node.name for node in site.absorbed if node.op == "affine"]
        else:
            names = [name]
        result += [Refusal(each, "; ".join(told)) for each in names if told]
    return tuple(result)


def _why_alone(view: View, site: Site) -> list[str]:
    """Why an affine that no transform looked at stays; nothing for a scalar constant."""
    blocked = view.blocked(site)
    if blocked is not None:
        return [blocked]
    maker = view.maker(site.inputs[0])
    if not is_vector(view.affine(site)) or is_bias_of_matmul(view, maker, site):
        return []
    before = "an input of the model" if maker is None else _kind(maker)
    readers = [each for name in view.readers(site.output) if (each := view.get(name))]
    after = ", ".join(dict.fromkeys(_kind(each) for each in readers)) or "an output"
    return [f"no conv beside it: it stands between {before} and {after}"]


def _kind(site: Site) -> str:
    kind = site.node.kind or site.op
    return f"{site.name} ({kind})" if site.op not in LAYER_OPS else site.title
