"""Figures of reports, benchmarks and sweeps, drawn with matplotlib and written to files.

>>> plots.save_all(plots.sweep_figures(sweep), folder)
"""

from dacconv.reports.plots.layers import report_figures
from dacconv.reports.plots.style import save, save_all, save_as, svg
from dacconv.reports.plots.sweep import sweep_figures

__all__ = ["report_figures", "save", "save_all", "save_as", "svg", "sweep_figures"]
