"""A working copy of the graph: each merge changes it, and the model changes only at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from dacconv.graph.types import LAYER_OPS, Affine, Conv, FloatArray, Graph, Node, Op, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """A padding of a value, all axes included.

    ``pads`` is ``(begin, end)`` per axis, batch and channels first. ``value`` is a constant, or an
    array ``(channels,)``. ``mode`` is ``"constant"``, or another name such as ``"reflect"``.
    """

    pads: tuple[tuple[int, int], ...]
    value: FloatArray | float = 0.0
    mode: str = "constant"

    @property
    def zeros(self) -> bool:
        """Whether it fills with zeros."""
        return self.mode == "constant" and not np.any(np.asarray(self.value))

    @property
    def spatial(self) -> tuple[tuple[int, int], ...] | None:
        """The pads of the spatial axes; None where other axes are padded too."""
        return None if any(any(pad) for pad in self.pads[:2]) else self.pads[2:]


Replacement = Conv | Affine | Padding
"""The operation of a merged site: a conv, or an affine or padding that may go into a conv later."""


class Weights(Protocol):
    """A source of the constants of a graph: a model."""

    def conv(self, node: str) -> Conv:
        """The conv at a node; see :class:`dacconv.formats.base.Model`."""
        ...

    def affine(self, node: str) -> Affine:
        """The affine at a node."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A node of the view: one of the graph, or several that were merged.

    ``node`` is the node of the graph whose output value the site computes. ``parts`` are the sites
    that were merged into this one, in order of execution, and ``replacement`` is what it computes;
    a site that is a node of the graph has neither. ``size`` is the number of nodes that it stands
    for, ``first_layer`` the name of the first conv or linear layer among them.
    """

    node: Node
    op: Op
    inputs: tuple[str, ...]
    parts: tuple[Site, ...] = ()
    replacement: Replacement | None = None
    axis: int = 1
    size: int = 1
    first_layer: str | None = None

    @property
    def name(self) -> str:
        """The name of the original node."""
        return self.node.name

    @property
    def title(self) -> str:
        """The name for messages: that of its first conv or linear layer, or its own."""
        return self.first_layer or self.name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of the graph that it stands for, in order of execution.

        Collected from ``parts`` on every call: a chain of merges would be quadratic if each
        merge copied what the one before it had collected.
        """
        nodes: list[Node] = []
        waiting: list[Site] = [self]
        while waiting:
            site = waiting.pop()
            if site.parts:
                waiting += reversed(site.parts)
            else:
                nodes.append(site.node)
        return tuple(nodes)

    @property
    def output(self) -> str:
        """The value that it computes."""
        return self.node.output


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """An instruction to replace several sites by one.

    ``parts`` are removed; ``target`` is the one of them whose value the new site computes from the
    value ``source``. ``alias`` maps a value of a part that other sites read to the value that they
    read from then on.
    """

    target: Site
    source: str
    parts: tuple[Site, ...]
    replacement: Replacement
    axis: int = 1
    alias: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The reason why the sites around ``node`` cannot be merged."""

    node: str
    reason: str


class View:
    """The sites of a graph, which :meth:`apply` rewrites one merge at a time."""

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self._weights = weights
        self._outputs = frozenset(graph.outputs)
        self.fixed = graph.fixed
        """Whether the sizes hold for every run; see :class:`dacconv.graph.types.Graph`."""
        self._shapes: dict[str, Shape | None] = {spec.name: spec.shape for spec in graph.inputs}
        self._sites: dict[str, Site] = {}
        self._producers: dict[str, str] = {}
        self._readers: dict[str, dict[str, int]] = {}  # value -> site -> number of reads
        self._reads: dict[str, int] = {}  # value -> total number of reads
        self._uses: dict[str, dict[str, object]] = {}  # weight -> nodes -> their modules
        self._order: dict[str, int] = {}
        self._aliases: dict[str, dict[str, None]] = {}  # site -> values that its merges removed
        self._substitutes: dict[str, str] = {}  # removed value -> the value in its place
        self._substituted: dict[str, dict[str, None]] = {}  # the other way round
        for index, node in enumerate(graph.nodes):
            self._order[node.name] = index
            axis = int(node.attrs.get("axis", 1))
            if axis < 0 and node.shape is not None:
                axis += len(node.shape)
            layer = node.name if node.op in LAYER_OPS else None
            self._add(Site(node, node.op, node.inputs, axis=axis, first_layer=layer))
            self._shapes[node.output] = node.shape
            if node.weight is not None and node.op in LAYER_OPS:
                module = node.attrs.get("module")
                self._uses.setdefault(node.weight, {})[node.name] = module

    def names(self) -> list[str]:
        """The names of the sites, in order of execution."""
        return list(self._sites)

    def get(self, name: str) -> Site | None:
        """The site of that name, unless it was merged into another."""
        return self._sites.get(name)

    def producer(self, value: str) -> Site | None:
        """The site that computes a value; None for inputs and for values of no known node."""
        name = self._producers.get(value)
        return None if name is None else self._sites[name]

    def readers(self, value: str) -> Collection[str]:
        """The names of the sites that read a value, each once."""
        return self._readers.get(value, {}).keys()

    def aliases(self, site: Site) -> dict[str, str]:
        """The values that the merges behind a site removed, and the values in their place."""
        return {value: self._substitutes[value] for value in self._aliases.get(site.name, ())}

    def is_output(self, value: str) -> bool:
        """Whether the value is an output of the model."""
        return value in self._outputs

    def other_use(self, value: str, site: str) -> str | None:
        """Another use of a value than being read once by ``site``; None where there is none."""
        reason = self.use_outside(value, {site})
        if reason is None and self._readers.get(value, {}).get(site, 0) > 1:
            return f"{self._title(site)} reads the value {value} more than once"
        return reason

    def use_outside(self, value: str, sites: Collection[str]) -> str | None:
        """A use of a value by anything but these sites; None where there is none."""
        if value in self._outputs:
            return f"the value {value} is an output of the model"
        readers = self._readers.get(value, {})
        first = next((name for name in readers if name not in sites), None)
        if first is None:
            return None
        count = self._reads[value] - sum(
            readers[name] for name in _smaller(readers, sites) if name in readers and name in sites
        )
        more = f" and {count - 1} more" if count > 1 else ""
        return f"the value {value} is also read by {self._title(first)}{more}"

    def refusal(self, site: Site) -> str | None:
        """The reason why a site must not be merged with any neighbour; None where it may be."""
        if site.replacement is not None:
            return None
        if site.node.skip:
            return site.node.skip
        uses = self._uses.get(site.node.weight or "", {})
        if site.op in LAYER_OPS and len(uses) > 1:
            module = uses[site.name]
            others = (n for n, m in uses.items() if n != site.name and (m is None or m != module))
            if other := next(others, None):
                return f"its weight {site.node.weight} is shared with {other}"
        return None

    def conv(self, site: Site) -> Conv:
        """The conv of a conv-like site."""
        if isinstance(site.replacement, Conv):
            return site.replacement
        return self._weights.conv(site.name)

    def affine(self, site: Site) -> Affine:
        """The affine of an affine site."""
        if isinstance(site.replacement, Affine):
            return site.replacement
        return self._weights.affine(site.name)

    def padding(self, site: Site) -> Padding:
        """The padding of a pad site."""
        if isinstance(site.replacement, Padding):
            return site.replacement
        attrs = site.node.attrs
        pads = tuple((int(begin), int(end)) for begin, end in attrs["pads"])
        return Padding(pads, attrs.get("value", 0.0), str(attrs.get("mode", "constant")))

    def shape(self, value: str) -> Shape | None:
        """The shape of a value, as far as it is known."""
        return self._shapes.get(value)

    def apply(self, merge: Merge) -> None:
        """Put the merged site in the place of ``merge.target``; remove the other parts."""
        removed = {part.name for part in merge.parts}
        parts = sorted(merge.parts, key=lambda part: self._order[part.name])
        site = Site(
            merge.target.node,
            op_of(merge.replacement),
            (merge.source,),
            tuple(parts),
            merge.replacement,
            merge.axis,
            sum(part.size for part in parts),
            next((part.first_layer for part in parts if part.first_layer), None),
        )
        for part in parts:
            self._remove(part, keep=part.name == merge.target.name)
        self._sites[site.name] = site
        self._connect(site)
        aliases: dict[str, None] = {}
        for part in parts:
            aliases |= self._aliases.pop(part.name, {})
        for value, other in merge.alias.items():
            self._redirect(value, other, removed)
            self._substitutes[value] = other
            self._substituted.setdefault(other, {})[value] = None
            aliases[value] = None
        if aliases:
            self._aliases[site.name] = aliases

    def _add(self, site: Site) -> None:
        self._sites[site.name] = site
        self._connect(site)

    def _connect(self, site: Site) -> None:
        self._producers[site.output] = site.name
        for value in site.inputs:
            readers = self._readers.setdefault(value, {})
            readers[site.name] = readers.get(site.name, 0) + 1
            self._reads[value] = self._reads.get(value, 0) + 1

    def _remove(self, site: Site, *, keep: bool) -> None:
        del self._producers[site.output]
        for value in site.inputs:
            self._reads[value] -= self._readers[value].pop(site.name, 0)
        if not keep:
            del self._sites[site.name]

    def _redirect(self, value: str, other: str, removed: set[str]) -> None:
        self._reads.pop(value, None)
        for name, times in self._readers.pop(value, {}).items():
            if name in removed:
                continue
            site = self._sites[name]
            inputs = tuple(other if each == value else each for each in site.inputs)
            self._sites[name] = replace(site, inputs=inputs)
            readers = self._readers.setdefault(other, {})
            readers[name] = readers.get(name, 0) + times
            self._reads[other] = self._reads.get(other, 0) + times
        for old in self._substituted.pop(value, {}):
            self._substitutes[old] = other
            self._substituted.setdefault(other, {})[old] = None

    def _title(self, name: str) -> str:
        site = self._sites.get(name)
        kind = site.node.kind if site is not None else ""
        return f"{name} ({kind})" if kind and kind not in name else name


def _smaller(first: Collection[str], second: Collection[str]) -> Collection[str]:
    return first if len(first) < len(second) else second


def op_of(replacement: Replacement) -> Op:
    """The operator of a site with this replacement."""
    if isinstance(replacement, Affine):
        return "affine"
    if isinstance(replacement, Padding):
        return "pad"
    if not replacement.kernel:
        return "linear"
    return "conv_transpose" if replacement.transposed else "conv"


def is_zero(values: object) -> bool:
    """Whether a constant is nothing but zeros."""
    return not np.any(np.asarray(values))
