"""The conversions of one model: it is fused once, and every layer is decomposed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from dacconv.conversion import pipeline
from dacconv.conversion.splitting import Split, rewrites, split_layer
from dacconv.decompositions import survey
from dacconv.decompositions.costs import cost as split_cost
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Divisible, Model
from dacconv.fusions.merged import MergedModel
from dacconv.graph.cost import Cost, total
from dacconv.graph.types import Choice, Layer, Plan
from dacconv.planning.spectra import Spectra, SplitOptions
from dacconv.sweeps.prefixes import Stops, Word

if TYPE_CHECKING:
    from dacconv.calibration.prepare import Calibrated

CACHE_BYTES = 2**28
"""The largest size of the factors that are cached for further plans."""


@dataclass(frozen=True, slots=True, eq=False)
class _Flat:
    """The fused model, and its node for every site of a layer."""

    model: Model
    nodes: dict[str, str]

    def place(self, site: str) -> int:
        """The position of a site in order of execution."""
        names = [node.name for node in self.model.graph().nodes]
        return names.index(self.nodes[site])


@dataclass(frozen=True, eq=False)
class Variants:
    """The conversions of a model; intermediate results are cached."""

    model: Model
    split: SplitOptions = field(default_factory=SplitOptions)
    calibrated: Calibrated | None = None
    _splits: dict[Choice, Split] = field(default_factory=dict)

    @cached_property
    def view(self) -> Model | MergedModel:
        """The model whose layers are split: fused, if ``split`` says so."""
        return pipeline.view_of(self.model, fuse=self.split.fuse)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in order of execution."""
        return survey(self.view.graph())

    @cached_property
    def spectra(self) -> Spectra:
        """The decomposition of each layer."""
        return Spectra(self.view, self.layers, self.split.kernel_scale)

    def cost(self, plan: Plan) -> Cost:
        """The cost of the converted model, as in its report."""
        by_name = {layer.name: layer for layer in self.layers}
        split = {c.layer: split_cost(by_name[c.layer], c) for c in plan.choices}
        return total((self._whole | split).values())

    @cached_property
    def _whole(self) -> dict[str, Cost]:
        """The cost of each layer without a split."""
        rows = pipeline.preview(self.model, Plan(()), fuse=self.split.fuse).rows
        return {row.name: row.after for row in rows}

    def kernel_errors(self, plan: Plan) -> list[float]:
        """The relative error of each kernel that is split."""
        return [self._split(choice).error.kernel_error for choice in plan.choices]

    def equivalent(self, plan: Plan) -> Model:
        """A model with the outputs of the conversion, up to rounding, that runs faster.

        The factors of every split layer are multiplied to one kernel. With weights in low
        precision, which would be rounded differently, and with a calibration, it is the conversion
        itself.
        """
        splits = {choice.layer: self._split(choice) for choice in plan.choices}
        if self.calibrated is not None or any(map(_is_rounded, splits.values())):
            return self.convert(plan)
        return self._rewritten(splits, whole=True)

    def convert(self, plan: Plan) -> Model:
        """The converted model, as from ``pipeline.convert``, with cached decompositions."""
        if self.calibrated is not None:
            calibrated = self.calibrated
            return pipeline.convert(self.model, plan, self.split, calibrated=calibrated).model
        return self._rewritten({c.layer: self._split(c) for c in plan.choices})

    def _rewritten(self, splits: Mapping[str, Split], *, whole: bool = False) -> Model:
        model: Model | MergedModel = self._flat.model if self._flat else self.view
        nodes = self._flat.nodes if self._flat else {}
        constructs = self.model.constructs(2, own_layers=True)
        edits = rewrites(model.graph(), list(splits.values()), constructs, nodes, whole=whole)
        if isinstance(model, MergedModel) or edits:
            return model.rewrite(edits)
        return model

    def word(self, plan: Plan) -> Word:
        """The choice of a plan for each layer, in the order of ``stops``."""
        by_layer = {choice.layer: choice for choice in plan.choices}
        return [by_layer.get(layer.name) for layer in self._ordered]

    @cached_property
    def stops(self) -> Stops | None:
        """The nodes before which runs can stop; None where the model can only be run as a whole.

        Calibrated factors depend on the layers before them, so prefixes are not shared then.
        """
        flat = self._flat
        if self.calibrated is not None or flat is None or not isinstance(flat.model, Divisible):
            return None
        first = [min(layer.sites, key=flat.place) for layer in self._ordered]
        nodes = tuple(flat.nodes[site] for site in first)
        try:
            if nodes:
                flat.model.live(nodes[0])
        except UnsupportedError:
            return None
        return Stops(flat.model, nodes)

    def _split(self, choice: Choice) -> Split:
        if choice not in self._splits:
            layer = next(layer for layer in self.layers if layer.name == choice.layer)
            new = split_layer(self.spectra, layer, choice)
            if sum(split.size for split in (*self._splits.values(), new)) > CACHE_BYTES:
                self._splits.clear()
            self._splits[choice] = new
        return self._splits[choice]

    @cached_property
    def _eligible(self) -> Sequence[Layer]:
        return [layer for layer in self.layers if layer.skip is None]

    @cached_property
    def _ordered(self) -> Sequence[Layer]:
        """The layers that can be split, in the order in which they are first run."""
        flat = self._flat
        if flat is None:
            return self._eligible
        return sorted(self._eligible, key=lambda layer: min(map(flat.place, layer.sites)))

    @cached_property
    def _flat(self) -> _Flat | None:
        """The fused model, if each layer that may be split is a node of it; else None."""
        flat = self.view.rewrite([]) if isinstance(self.view, MergedModel) else self.view
        graph = self.view.graph()
        by_output = {node.output: node.name for node in flat.graph().nodes}
        nodes: dict[str, str] = {}
        for site in (site for layer in self._eligible for site in layer.sites):
            node = by_output.get(graph.node(site).output)
            if node is None or flat.conv(node).weight.shape != self.view.conv(site).weight.shape:
                return None
            nodes[site] = node
        return _Flat(flat, nodes)


def _is_rounded(split: Split) -> bool:
    """Whether its factors have low precision, so that they are rounded unlike their product."""
    return any(conv.weight.dtype.itemsize < 4 for _, conv in split.sites)
