"""The ways to split a kernel. A new one is one file and one line here."""

from __future__ import annotations

from dacconv.decompositions import dac
from dacconv.decompositions.base import Branches, Factors, Method

METHODS: dict[str, Method] = {
    "dac": dac.METHOD,
}

__all__ = ["METHODS", "Branches", "Factors", "Method"]
