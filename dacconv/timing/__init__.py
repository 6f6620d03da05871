"""The time of a layer, split or not: measured in its runtime, or predicted."""

from __future__ import annotations

from dacconv.timing.prices import PredictedSpeeds
from dacconv.timing.speeds import Speeds, Target, target_for
from dacconv.timing.timer import Timer

__all__ = ["PredictedSpeeds", "Speeds", "Target", "Timer", "target_for"]
