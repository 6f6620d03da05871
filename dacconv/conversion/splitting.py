"""Splitting one layer: its kernel decomposed once, the convs put together at each call site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from dacconv.decompositions import METHODS, Factors, Method
from dacconv.decompositions.forms import Reordering, lower
from dacconv.graph.findings import LayerError
from dacconv.graph.types import Branches, Choice, Construct, Conv, Graph, Layer, Rewrite
from dacconv.planning.spectra import Spectra


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The factors that take the place of a layer's kernel, and what they lose.

    ``sites`` are the layer's call sites, each with its conv as the model has it.
    """

    choice: Choice
    sites: tuple[tuple[str, Conv], ...]
    factors: Factors
    error: LayerError

    @property
    def method(self) -> Method:
        """The method of the split."""
        return METHODS[self.choice.method]

    def branches(self) -> tuple[Branches, ...]:
        """The chains of each call site; their weights are shared."""
        return self.method.branches([conv for _, conv in self.sites], self.factors)

    def recomposed(self) -> tuple[Branches, ...]:
        """The one conv that each site's chains amount to, with the kernel that is left."""
        first = self.method.recompose(self.sites[0][1], self.factors)
        return tuple(((replace(conv, weight=first.weight),),) for _, conv in self.sites)

    @property
    def size(self) -> int:
        """The bytes of its factors."""
        return sum(factor.nbytes for factor in self.factors)


def split_layer(spectra: Spectra, layer: Layer, choice: Choice) -> Split:
    """Decompose a layer's kernel as the choice says.

    Raises:
        UnsupportedError: the kernel holds NaN or infinite values.
        UsageError: there is no such scale.
    """
    factors = spectra.factors(choice)
    error = spectra(layer.name, choice.method).relative_error(choice.rank)
    sites = tuple((site, spectra.model.conv(site)) for site in layer.sites)
    return Split(choice, sites, factors, LayerError(error))


def rewrites(
    graph: Graph,
    splits: Sequence[Split],
    constructs: frozenset[Construct],
    names: Mapping[str, str] = MappingProxyType({}),
    *,
    whole: bool = False,
) -> list[Rewrite]:
    """The edits that carry splits out in a model that can write ``constructs``.

    ``names`` maps sites to the nodes that they are in ``graph``. With ``whole`` every site becomes
    the one conv that its split amounts to.
    """
    nodes = {node.name: node for node in graph.nodes}
    reorder = Reordering()
    edits = []
    for split in splits:
        choice = split.choice
        branches = split.recomposed() if whole else split.branches()
        for (site, _), chains in zip(split.sites, branches, strict=True):
            target = names.get(site, site)
            edits.append(
                Rewrite(
                    target=target,
                    source=nodes[target].inputs[0],
                    branches=chains if whole else lower(chains, choice.form, reorder, constructs),
                    reason=f"{choice.method} rank {', '.join(map(str, choice.rank))}",
                    own_layers=True,
                )
            )
    return edits
