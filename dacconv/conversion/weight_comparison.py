"""Whether two models have the same layers with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Model
from dacconv.graph.types import FloatArray

TOLERANCES = {2: 1e-2, 4: 1e-4, 8: 1e-4}
"""How far weights may differ that are the same but for rounding, by bytes per number."""


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """The weights of two models, compared layer by layer.

    ``difference`` is the largest of the layers' ``|w - w'| / |w|``. ``problem`` says how the
    models differ by more than rounding; it is empty where they do not.
    """

    layers: int = 0
    difference: float = 0.0
    problem: str = ""


def compare_weights(first: Model, second: Model) -> WeightComparison:
    """Compare the layers of two models, and their weights and biases; no model is run."""
    layers = _layers(first)
    if layers != (others := _layers(second)):
        only_one = sorted(set(layers) ^ set(others))
        example = f", such as {only_one[0][0]}" if only_one else ""
        problem = f"it has other layers{example}" if only_one else "the layers' order differs"
        return WeightComparison(problem=problem)
    largest, different = 0.0, []
    for name, op in layers:
        own = _weights(first, name, op)
        pairs = zip(own, _weights(second, name, op), strict=True)
        difference = max(_difference(a, b) for a, b in pairs)
        largest = max(largest, difference)
        if not difference <= _tolerance(own[0], op):
            different.append(f"{name} by {difference:.2g}")
    problem = ""
    if different:
        listed = _listed(different)
        problem = f"the weights of {len(different)} of {len(layers)} layers differ: {listed}"
    return WeightComparison(len(layers), largest, problem)


def _layers(model: Model) -> list[tuple[str, str]]:
    ops = ("conv", "conv_transpose", "linear", "affine")
    return [(node.name, node.op) for node in model.graph().nodes if node.op in ops]


def _weights(model: Model, name: str, op: str) -> tuple[FloatArray | None, FloatArray | None]:
    """The weight and bias of a layer, or the scale and shift of an affine.

    Both are None where the model cannot say: a conv that its code calls as a function.
    """
    try:
        if op == "affine":
            affine = model.affine(name)
            return affine.scale, affine.shift
        conv = model.conv(name)
    except UnsupportedError:
        return None, None
    return conv.weight, conv.bias


def _difference(a: FloatArray | None, b: FloatArray | None) -> float:
    """``|a - b| / |a|``; infinite where one is missing or the shapes differ."""
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    if a.shape != b.shape:
        return float("inf")
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    size = float(np.linalg.norm(np.asarray(a, np.float64)))
    difference = float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
    return difference / size if size else float("inf")


def _tolerance(weight: FloatArray | None, op: str) -> float:
    itemsize = 8 if op == "affine" or weight is None else weight.dtype.itemsize
    return TOLERANCES.get(itemsize, 1e-4)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
