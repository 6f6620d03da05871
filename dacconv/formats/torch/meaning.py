"""What a call or a layer is in the neutral graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dacconv.graph.types import Geometry, Op


@dataclass(frozen=True, slots=True)
class Meaning:
    """The fields of a node that follow from the call alone; see :class:`~dacconv.graph.types.Node`.

    The default is an operator of which nothing is known.
    """

    op: Op = "other"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None
    skip: str | None = None
