"""The cost of a layer: multiply-adds, parameters, bytes moved.

One multiply-add is one MAC; FLOPs are 2 x MACs. Bias additions are not counted, as in
``torch.utils.flop_counter`` and fvcore.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from dacconv.graph.types import Geometry


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a layer, or of several.

    ``macs`` and ``traffic`` (bytes read and written: input, weights, output, once each) are
    None where the size of the activations is not known.
    """

    macs: int | None
    params: int
    traffic: int | None

    def __add__(self, other: Self) -> Cost:
        return Cost(
            _add(self.macs, other.macs),
            self.params + other.params,
            _add(self.traffic, other.traffic),
        )


NOTHING = Cost(0, 0, 0)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum; a number is None if it is None in any part."""
    return sum(costs, NOTHING)


def layer_cost(geometry: Geometry) -> Cost:
    """The cost of one run of a conv, a transposed conv or a linear layer."""
    g = geometry
    per_position = g.out_channels * (g.in_channels // g.groups) * math.prod(g.kernel)
    params = per_position + (g.out_channels if g.bias else 0)
    if g.batch == 0:
        return Cost(0, params, 0)
    positions = g.input_size if g.transposed else g.output_size
    macs = None if positions is None else g.batch * math.prod(positions) * per_position
    if g.input_size is None or g.output_size is None:
        return Cost(macs, params, None)
    read = g.batch * math.prod(g.input_size) * g.in_channels
    written = g.batch * math.prod(g.output_size) * g.out_channels
    return Cost(macs, params, (read + params + written) * g.itemsize)


def shared_cost(geometries: Iterable[Geometry]) -> Cost:
    """The cost of one weight used at several places: stored once, computed at each of them."""
    costs = [layer_cost(geometry) for geometry in geometries]
    together = total(costs)
    return Cost(together.macs, max(cost.params for cost in costs), together.traffic)


def _add(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b
