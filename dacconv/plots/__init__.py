"""Figures of reports, benchmarks and sweeps, by matplotlib, and what makes files of them.

>>> for name, figure in plots.sweep_figures(sweep).items():
...     plots.save(figure, folder, name)
"""

from dacconv.plots.style import save, save_as, svg
from dacconv.plots.sweep import sweep_figures

__all__ = ["save", "save_as", "svg", "sweep_figures"]
