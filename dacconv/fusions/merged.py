"""A model seen through its fusions: what is merged looks like one conv, and is split as one.

The fusions and the splits are carried out together, in one rewrite of the original, so that
no intermediate model is made and every weight is cast once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from dacconv.formats.base import Model
from dacconv.fusions import Fusing, find_fusions
from dacconv.graph.types import (
    LAYER_OPS,
    Conv,
    FloatArray,
    Geometry,
    Graph,
    Node,
    Op,
    Refusal,
    Rewrite,
)

_FUSINGS: WeakKeyDictionary[Model, Fusing] = WeakKeyDictionary()
"""What was found for each model that is in use; a Fusing holds no reference to its model."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnScale:
    """A kernel before a BatchNorm scaled its output channels: ``merged = scale * weight``.

    ``weight`` is ``(out, in / groups, *k)``, ``scale`` is ``(out,)`` in float64.
    """

    weight: FloatArray
    scale: FloatArray


@dataclass(frozen=True, eq=False)
class MergedModel:
    """``base`` with ``fusing`` applied, as far as reading it goes.

    A merged conv is named after the conv in it whose kernel it keeps.
    """

    base: Model
    fusing: Fusing

    @property
    def path(self) -> Path:
        """The file of the original."""
        return self.base.path

    @cached_property
    def _originals(self) -> dict[str, Node]:
        return {node.name: node for node in self.base.graph().nodes}

    @cached_property
    def edits(self) -> dict[str, Rewrite]:
        """The name of each merged conv, and the edit that makes it."""
        return {self._main(edit): edit for edit in self.fusing.rewrites}

    @property
    def absorbed(self) -> dict[str, str]:
        """Each conv, linear layer and the like that went into another -> that one's name."""
        return {
            node: name
            for name, edit in self.edits.items()
            for node in edit.drop
            if node != name and self._originals[node].op in LAYER_OPS
        }

    @property
    def merged_params(self) -> dict[str, int]:
        """The parameters of everything but convs that went into each merged conv."""
        return {
            name: sum(
                self._originals[node].params
                for node in edit.drop
                if self._originals[node].op not in LAYER_OPS
            )
            for name, edit in self.edits.items()
        }

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What could not be merged, and why."""
        return self.fusing.refusals

    @cached_property
    def _graph(self) -> Graph:
        graph = self.base.graph()
        alias = {old: new for edit in self.edits.values() for old, new in edit.alias.items()}
        by_target = {edit.target: (name, edit) for name, edit in self.edits.items()}
        gone = {node for edit in self.edits.values() for node in edit.drop}
        nodes: list[Node] = []
        for node in graph.nodes:
            if node.name in by_target:
                nodes.append(self._merged(*by_target[node.name], node))
            elif node.name not in gone:
                inputs = tuple(alias.get(value, value) for value in node.inputs)
                nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
        return replace(graph, nodes=tuple(nodes))

    def graph(self) -> Graph:
        """The graph with every merged conv as one node."""
        return self._graph

    def conv(self, node: str) -> Conv:
        """A merged conv, in float64, or one of the model's own."""
        edit = self.edits.get(node)
        return self.base.conv(node) if edit is None else edit.merged

    def own_scale(self, node: str) -> OwnScale | None:
        """The kernel of a merged conv before its output channels were scaled.

        None where the model's own conv is not scaled, or where the merged one is more than a
        scaled one (several branches, a chain, a scale of the input).
        """
        if node not in self.edits:
            return None
        merged = self.conv(node).weight
        own = self.base.conv(node).weight
        if own.shape != merged.shape:
            return None
        rows = own.astype(np.float64).reshape(own.shape[0], -1)
        scaled = merged.reshape(rows.shape)
        size = (rows**2).sum(axis=1)
        scale = np.divide(
            (rows * scaled).sum(axis=1), size, out=np.zeros_like(size), where=size > 0
        )
        rest = np.linalg.norm(scaled - scale[:, None] * rows)
        return OwnScale(own, scale) if rest <= 1e-9 * np.linalg.norm(scaled) else None

    def rewrite(self, edits: Sequence[Rewrite]) -> Model:
        """The original with the fusions and ``edits`` to this graph applied together."""
        given = {edit.target: edit for edit in edits}
        together = [
            replace(
                edit,
                branches=given[name].branches,
                own_layers=given[name].own_layers,
                reason=f"{edit.reason}; {given[name].reason}",
            )
            if name in given
            else edit
            for name, edit in self.edits.items()
        ]
        together += [edit for name, edit in given.items() if name not in self.edits]
        return self.base.rewrite(together) if together else self.base

    def _main(self, edit: Rewrite) -> str:
        """The absorbed conv whose kernel the merged one keeps; else the first, or the target."""
        nodes = [self._originals[name] for name in edit.drop]
        convs = [node for node in nodes if node.op in LAYER_OPS and node.geometry is not None]
        kernel = edit.merged.kernel
        same = [node for node in convs if node.geometry and node.geometry.kernel == kernel]
        return next(iter([*same, *convs, self._originals[edit.target]])).name

    def _merged(self, name: str, edit: Rewrite, target: Node) -> Node:
        conv = edit.merged
        main = self._originals[name]
        return replace(
            main,
            name=name,
            op=_op(conv),
            inputs=(edit.source,),
            output=target.output,
            shape=target.shape,
            weight=None,
            geometry=_geometry(conv, [self._originals[node] for node in edit.drop]),
            skip=None,
        )


def merged(model: Model) -> MergedModel:
    """The model with everything merged that can be without changing its outputs.

    The fusions are found once per model, for as long as it is in use: planning, calibrating and
    converting all look at the same merged graph.
    """
    fusing = _FUSINGS.get(model)
    if fusing is None:
        fusing = _FUSINGS[model] = find_fusions(model)
    return MergedModel(model, fusing)


def _op(conv: Conv) -> Op:
    if conv.transposed:
        return "conv_transpose"
    return "conv" if conv.kernel else "linear"


def _geometry(conv: Conv, parts: Iterable[Node]) -> Geometry | None:
    """The merged conv's geometry; sizes from the first and the last conv that went into it."""
    known = [part.geometry for part in parts if part.geometry is not None]
    if not known:
        return None
    return replace(known[0].of(conv), output_size=known[-1].output_size)
