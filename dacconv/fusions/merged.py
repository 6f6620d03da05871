"""A model with its fusions applied: a merged conv looks like any other, and can be split.

The fusions and the splits are carried out together, in one rewrite of the original, so there is
no intermediate model and every weight is cast once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from dacconv.formats.base import Model
from dacconv.fusions import FusionPlan, find_fusions
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

_PLANS: WeakKeyDictionary[Model, FusionPlan] = WeakKeyDictionary()
"""The fusions of each model that is in use; a FusionPlan holds no reference to its model."""


@dataclass(frozen=True, slots=True, eq=False)
class ScaledKernel:
    """A kernel as ``scale * weight``, where a BatchNorm has scaled its output channels.

    ``weight`` is ``(out, in / groups, *kernel)``, ``scale`` is ``(out,)`` in float64.
    """

    weight: FloatArray
    scale: FloatArray


@dataclass(frozen=True, eq=False)
class MergedModel:
    """``base`` as it reads with ``fusions`` applied.

    A merged conv is named after the original conv that has its kernel size.
    """

    base: Model
    fusions: FusionPlan

    @property
    def path(self) -> Path:
        """The file of the original."""
        return self.base.path

    @cached_property
    def _originals(self) -> dict[str, Node]:
        return {node.name: node for node in self.base.graph().nodes}

    @cached_property
    def edits(self) -> dict[str, Rewrite]:
        """The edit that creates each merged conv, by the conv's name."""
        return {self._main(edit): edit for edit in self.fusions.rewrites}

    @property
    def merged_into(self) -> dict[str, str]:
        """Each conv or linear layer that was merged into another -> the name of that one."""
        return {
            node: name
            for name, edit in self.edits.items()
            for node in edit.drop
            if node != name and self._originals[node].op in LAYER_OPS
        }

    @property
    def merged_params(self) -> dict[str, int]:
        """The number of parameters in each merged conv that were not in a conv before."""
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
        """The nodes that could not be merged, and the reasons."""
        return self.fusions.refusals

    @cached_property
    def _graph(self) -> Graph:
        graph = self.base.graph()
        alias = {old: new for edit in self.edits.values() for old, new in edit.alias.items()}
        by_target = {edit.target: (name, edit) for name, edit in self.edits.items()}
        removed = {node for edit in self.edits.values() for node in edit.drop}
        nodes: list[Node] = []
        for node in graph.nodes:
            if node.name in by_target:
                nodes.append(self._merged(*by_target[node.name], node))
            elif node.name not in removed:
                inputs = tuple(alias.get(value, value) for value in node.inputs)
                nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
        return replace(graph, nodes=tuple(nodes))

    @cached_property
    def _shared_weights(self) -> dict[str, str]:
        """A name for the weight of merged convs that are equal, as their original weights are."""
        groups: dict[str, list[str]] = {}
        for name in self.edits:
            node = self._originals[name]
            if (weight := node.weight) and "module" in node.attrs:
                groups.setdefault(weight, []).append(name)
        return {
            name: f"{weight} (merged)"
            for weight, names in groups.items()
            if len(names) > 1 and _all_equal([self.edits[name].merged for name in names])
            for name in names
        }

    def graph(self) -> Graph:
        """The graph with every merged conv as one node."""
        return self._graph

    def conv(self, node: str) -> Conv:
        """A merged conv in float64, or a conv of the model as it is."""
        edit = self.edits.get(node)
        return self.base.conv(node) if edit is None else edit.merged

    def scaled_kernel(self, node: str) -> ScaledKernel | None:
        """The kernel of a merged conv before its output channels were scaled.

        None where the conv was not merged, or where merging did more than scale its output
        channels (several branches, a chain, a scale of the input).
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
        return ScaledKernel(own, scale) if rest <= 1e-9 * np.linalg.norm(scaled) else None

    def rewrite(self, edits: Sequence[Rewrite]) -> Model:
        """The original with the fusions and ``edits`` to this graph applied together."""
        splits = {edit.target: edit for edit in edits}
        combined = [
            replace(
                edit,
                branches=splits[name].branches,
                own_layers=splits[name].own_layers,
                reason=f"{edit.reason}; {splits[name].reason}",
            )
            if name in splits
            else edit
            for name, edit in self.edits.items()
        ]
        combined += [edit for name, edit in splits.items() if name not in self.edits]
        return self.base.rewrite(combined) if combined else self.base

    def _main(self, edit: Rewrite) -> str:
        """The first of the convs with the final kernel size; else the first conv, or the target."""
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
            weight=self._shared_weights.get(name),
            geometry=_geometry(conv, [self._originals[node] for node in edit.drop]),
            skip=None,
        )


def merged_model(model: Model) -> MergedModel:
    """The model with everything merged that can be without changing its outputs.

    The fusions of a model are looked for once, for as long as it is in use: planning, calibrating
    and converting read the same merged graph.
    """
    fusions = _PLANS.get(model)
    if fusions is None:
        fusions = _PLANS[model] = find_fusions(model)
    return MergedModel(model, fusions)


def _all_equal(convs: Sequence[Conv]) -> bool:
    """Whether convs have the same weight and bias."""
    first, *others = convs
    return all(
        np.array_equal(first.weight, other.weight)
        and (first.bias is None) == (other.bias is None)
        and (first.bias is None or other.bias is None or np.array_equal(first.bias, other.bias))
        for other in others
    )


def _op(conv: Conv) -> Op:
    if conv.transposed:
        return "conv_transpose"
    return "conv" if conv.kernel else "linear"


def _geometry(conv: Conv, parts: Iterable[Node]) -> Geometry | None:
    """The merged conv's geometry; its sizes are those of the first and last conv of ``parts``."""
    geometries = [part.geometry for part in parts if part.geometry is not None]
    if not geometries:
        return None
    return replace(geometries[0].of(conv), output_size=geometries[-1].output_size)
