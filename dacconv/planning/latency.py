"""A budget of measured time: the least damage within a share of the original's milliseconds.

What is saved is measured layer by layer; the network is taken to save their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from dacconv.decompositions import Method
from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer
from dacconv.planning.base import RankOptions, Spectra
from dacconv.planning.budget import kernel_damage, macs, spend


def latency(
    layers: Sequence[Layer], method: Method, options: RankOptions, spectra: Spectra
) -> list[Choice]:
    """The ranks of least damage that keep the whole network within its share of the time.

    Raises:
        UsageError: the times were not measured, or the share cannot be reached.
    """
    times, share = options.times, options.latency
    if times is None or share is None:
        raise UsageError("the times of the layers were not measured", where="--latency")

    def price(layer: Layer, method: Method, rank: int | None) -> int | None:
        return times.of(layer, rank)

    return spend(
        layers,
        method,
        price,
        kind="latency",
        share=share,
        before=times.whole,
        damage=options.damage or kernel_damage(spectra),
        worth=macs,
    )
