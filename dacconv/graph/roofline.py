"""The memory traffic of layers relative to their multiply-adds.

The roofline model (Williams et al., CACM 52(4), 2009): a layer whose arithmetic intensity, MACs
per byte moved, is below what the machine can compute per byte waits for memory. The four
guidelines are those of Ma et al., "ShuffleNet V2", arXiv 1807.11164, section 3, each as the ratio
to its optimum at the same MACs: 1 is the optimum, 1.5 moves half as many bytes again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from dacconv.graph.cost import Cost
from dacconv.graph.types import Geometry


def intensity(cost: Cost) -> float | None:
    """MACs per byte moved; None where either is not known or nothing is moved."""
    if cost.macs is None or not cost.traffic:
        return None
    return cost.macs / cost.traffic


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that are moved, and the minimum for the same MACs."""

    bytes: float = 0.0
    least: float = 0.0

    def __add__(self, other: Self) -> Moved:
        return Moved(self.bytes + other.bytes, self.least + other.least)

    @property
    def ratio(self) -> float | None:
        """Moved bytes over the minimum; None where the guideline does not apply."""
        return self.bytes / self.least if self.least else None


def together(parts: Iterable[Moved]) -> Moved:
    """The sum."""
    return sum(parts, Moved())


def widths(g: Geometry) -> Moved | None:
    """G1, section 3 (1): a 1x1 conv moves the fewest bytes if input and output widths are equal.

    It reads and writes ``hw (c1 + c2) + c1 c2`` values for ``B = hw c1 c2`` multiply-adds, and
    ``hw (c1 + c2) + c1 c2 >= 2 sqrt(hw B) + B / hw``, equal where ``c1 = c2``. A batch counts
    as area, since the weights are read once. The guideline does not apply to convs that are not
    1x1 or have groups or a stride, whose result is an empty ``Moved``. None where the sizes are
    not known.
    """
    if g.batch == 0 or set(g.kernel) != {1} or g.groups != 1 or set(g.stride) != {1}:
        return Moved()
    if g.output_size is None:
        return None
    area = g.batch * math.prod(g.output_size)
    weights = g.in_channels * g.out_channels
    moved = area * (g.in_channels + g.out_channels) + weights
    least = 2 * area * math.sqrt(weights) + weights
    return Moved(moved * g.itemsize, least * g.itemsize)


def groups(g: Geometry) -> Moved | None:
    """G2, section 3 (2): with the same input and MACs, a grouped conv moves more bytes.

    With g groups, ``B = hw k c1 c2 / g`` multiply-adds (k the kernel's size) come with
    ``hw_in c1 + hw c2 + k c1 c2 / g`` values; the ungrouped conv of the same input and MACs has
    ``c2 / g`` outputs, and as many weights. A depthwise conv has ``g = c1``. The guideline does
    not apply to convs without groups, whose result is an empty ``Moved``. None where the sizes
    are not known.
    """
    if g.batch == 0 or g.groups == 1:
        return Moved()
    if g.output_size is None or g.input_size is None:
        return None
    read = g.batch * math.prod(g.input_size) * g.in_channels
    written = g.batch * math.prod(g.output_size) * g.out_channels
    weights = math.prod(g.kernel) * g.in_channels * g.out_channels / g.groups
    moved, least = read + written + weights, read + written / g.groups + weights
    return Moved(moved * g.itemsize, least * g.itemsize)


@dataclass(frozen=True, slots=True)
class Roofline:
    """The memory traffic of one or several layers; None where the sizes are not known.

    ``convs`` are the bytes moved by the convs themselves, ``elementwise`` those moved by the
    additions, affines, activations and copies around them (G4, section 3 (4)), and ``operators``
    is the number of operators in the place of ``layers`` layers (G3, section 3 (3)).
    """

    macs: int | None
    convs: int | None
    widths: Moved | None
    groups: Moved | None
    elementwise: int | None
    operators: int
    layers: int

    def __add__(self, other: Self) -> Roofline:
        return Roofline(
            _add(self.macs, other.macs),
            _add(self.convs, other.convs),
            None if self.widths is None or other.widths is None else self.widths + other.widths,
            None if self.groups is None or other.groups is None else self.groups + other.groups,
            _add(self.elementwise, other.elementwise),
            self.operators + other.operators,
            self.layers + other.layers,
        )

    @property
    def intensity(self) -> float | None:
        """MACs per byte that the convs move."""
        return intensity(Cost(self.macs, 0, self.convs))

    @property
    def guidelines(self) -> dict[str, float | None]:
        """Ratios to the optimum by guideline: widths, groups, fragmentation and elementwise."""
        both = None if self.elementwise is None or not self.convs else self.elementwise + self.convs
        return {
            "widths": None if self.widths is None else self.widths.ratio,
            "groups": None if self.groups is None else self.groups.ratio,
            "fragmentation": self.operators / self.layers if self.layers else None,
            "elementwise": None if both is None or not self.convs else both / self.convs,
        }


NOTHING = Roofline(0, 0, Moved(), Moved(), 0, 0, 0)


def total(parts: Iterable[Roofline]) -> Roofline:
    """The sum; unknown as soon as one part is."""
    return sum(parts, NOTHING)


def of_convs(
    convs: Iterable[Geometry], cost: Cost, elementwise: int | None, *, operators: int, layers: int
) -> Roofline:
    """The roofline of convs with the cost ``cost``: ``operators`` in the place of ``layers``."""
    geometries = tuple(convs)
    wide, grouped = [widths(g) for g in geometries], [groups(g) for g in geometries]
    return Roofline(
        cost.macs,
        cost.traffic,
        None if None in wide else together(moved for moved in wide if moved),
        None if None in grouped else together(moved for moved in grouped if moved),
        elementwise,
        operators,
        layers,
    )


def _add(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b
