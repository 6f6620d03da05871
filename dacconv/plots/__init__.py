"""Figures of reports, by matplotlib, and what makes files of them."""

from dacconv.plots.style import save, svg

__all__ = ["save", "svg"]
