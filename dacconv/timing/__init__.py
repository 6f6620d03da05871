"""How fast a layer is, split or not: measured where it will run, or looked up."""

from __future__ import annotations

from dacconv.timing.speeds import Speeds, Target, target_for
from dacconv.timing.table import TableSpeeds
from dacconv.timing.timer import Timer

__all__ = ["Speeds", "TableSpeeds", "Target", "Timer", "target_for"]
