"""Splitting one layer: its kernel decomposed once, put together at each of its sites."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dacconv.decompositions import METHODS, Branches
from dacconv.graph.findings import LayerError
from dacconv.graph.types import Array, Choice, FloatArray, Layer
from dacconv.planning.spectra import Spectra, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What replaces a layer: the branches at each of its sites, and what they lose."""

    sites: tuple[tuple[str, Branches], ...]
    error: LayerError


def split_layer(spectra: Spectra, layer: Layer, choice: Choice) -> Split:
    """Decompose a layer's kernel and put it together at each of its sites.

    Raises:
        UnsupportedError: the kernel holds NaN or infinite values.
        UsageError: there is no such scale.
    """
    method = METHODS[choice.method]
    kernel, svd = spectra.kernel(layer.name), spectra(layer.name)
    factors = method.factor(kernel.weight, svd, choice.rank)
    made: dict[int, Array] = {}
    sites = tuple(
        (site, _rescaled(method.assemble(spectra.model.conv(site), factors), kernel.scale, made))
        for site in layer.sites
    )
    return Split(sites, LayerError(factors.relative_error))


def _rescaled(branches: Branches, scale: FloatArray, made: dict[int, Array]) -> Branches:
    """Every chain's output channels times ``scale`` ``(out,)``; the biases hold it already.

    ``made`` keeps what was scaled, so that sites go on sharing their weights.
    """
    if (scale == 1).all():
        return branches
    chains = []
    for *first, last in branches:
        if id(last.weight) not in made:
            made[id(last.weight)] = last.weight * rows_of(scale, last.weight)
        chains.append((*first, replace(last, weight=made[id(last.weight)])))
    return tuple(chains)
