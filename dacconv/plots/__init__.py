"""Figures of reports and benchmarks, by matplotlib, and what makes files of them."""

from dacconv.plots.style import save, save_as, svg

__all__ = ["save", "save_as", "svg"]
