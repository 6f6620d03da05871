"""The precision of a model's layers: what a plan says of it, and how it is written in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from dacconv.errors import UsageError
from dacconv.support.json_values import is_text, shown

FP32, INT8, FP16, BF16 = "fp32", "int8", "fp16", "bf16"
PRECISIONS = (FP32, INT8, FP16, BF16)
"""The precisions that a layer can be written in."""
AUTO = "auto"
"""Int8 where it is measured to be faster and its damage is small, else fp32."""
ACTIVATIONS = ("uint8", "int8")
"""The types of quantised activations."""
RANGES = ("min-max", "percentile", "mse")
"""How the range of an activation is taken from what was observed: all of it, all but one value in
ten thousand, or the range with the least squared error of rounding and clipping."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision of every layer, and how int8 is done.

    ``default`` is the precision of the layers that ``layers`` does not name, or ``AUTO``;
    ``layers`` holds
    pairs of a name (or a glob, before the plan is carried out) and a precision. Settings that are
    None are chosen by the error on held-out inputs when the plan is carried out: ``activations``,
    ``ranges``, ``reduce_range`` (weights of 7 bits, for processors whose 8-bit products
    saturate), ``correct_bias``. ``complete`` is true where ``layers`` names every layer, so that
    nothing is left to choose. ``compute`` is true where fp16 is also what the model computes in.
    """

    default: str
    layers: tuple[tuple[str, str], ...] = ()
    activations: str | None = None
    ranges: str | None = None
    reduce_range: bool | None = None
    correct_bias: bool | None = None
    compute: bool = False
    complete: bool = False

    def of(self, layer: str) -> str:
        """The precision of a layer; the last matching entry counts."""
        precision = self.default
        for name, value in self.layers:
            if name == layer or fnmatchcase(layer, name):
                precision = value
        return precision

    @property
    def may_be_int8(self) -> bool:
        """Whether some layers are to be int8, or may be."""
        return bool({INT8, AUTO} & {self.default, *(value for _, value in self.layers)})

    def settled(self, layers: Mapping[str, str]) -> Precision:
        """The precision with an entry for every layer."""
        return replace(self, layers=tuple(layers.items()), complete=True)


def parse_precision(text: str, where: str) -> Precision:
    """A precision as it is typed: ``int8``, or with exceptions ``int8,conv1=fp32,head*=fp32``.

    Raises:
        UsageError: an unknown precision, or several for all layers.
    """
    default, layers = None, []
    for part in text.split(","):
        name, sign, value = part.strip().rpartition("=")
        if value not in (PRECISIONS if sign else (*PRECISIONS, AUTO)) or (sign and not name):
            raise UsageError(
                f"'{value}' is no precision",
                where=where,
                hint=f"known: {', '.join((*PRECISIONS, AUTO))}; an exception: int8,conv1=fp32",
            )
        if sign:
            layers.append((name, value))
        elif default is None:
            default = value
        else:
            raise UsageError(
                f"two precisions for all layers, {default} and {value}",
                where=where,
                hint="name the layers of the second one, as in int8,conv1=fp32",
            )
    return Precision(default or FP32, tuple(layers))


def precision_from_dict(data: object, where: str) -> Precision:
    """The inverse of :func:`precision_to_dict`, for data that a person may have edited.

    Raises:
        UsageError: an unknown key, or a value that is not allowed.
    """
    if not isinstance(data, Mapping):
        raise UsageError(
            f"'precision' is not an object: {shown(data)}",
            where=where,
            hint='write "precision": {"default": "int8", "layers": {"conv1": "fp32"}}',
        )
    allowed: dict[str, tuple[object, ...]] = {
        "default": (*PRECISIONS, AUTO),
        "activations": (*ACTIVATIONS, None),
        "ranges": (*RANGES, None),
        "reduce_range": (True, False, None),
        "correct_bias": (True, False, None),
        "compute": (True, False),
        "complete": (True, False),
    }
    layers = data.get("layers", {})
    if unknown := {str(key) for key in data} - {*allowed, "layers"}:
        raise UsageError(f"'precision' has an unknown key '{min(unknown)}'", where=where)
    if not isinstance(layers, Mapping) or not all(map(is_text, layers)):
        raise UsageError("the 'layers' of 'precision' are not an object", where=where)
    values = {name: data.get(name, _DEFAULTS.get(name)) for name in allowed}
    for name, value in (*values.items(), *((f"layer {n}", v) for n, v in layers.items())):
        choices = allowed.get(name, PRECISIONS)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            known = ", ".join(json.dumps(choice) for choice in choices if choice is not None)
            raise UsageError(
                f"'precision': {name} cannot be {shown(value)}", where=where, hint=f"known: {known}"
            )
    return Precision(**{**values, "layers": tuple(layers.items())})


_DEFAULTS = {"default": FP32, "compute": False, "complete": False}


def precision_to_dict(precision: Precision) -> dict[str, Any]:
    """The precision as JSON-ready data; settings that are open are left out."""
    settings = {
        "activations": precision.activations,
        "ranges": precision.ranges,
        "reduce_range": precision.reduce_range,
        "correct_bias": precision.correct_bias,
        "compute": precision.compute or None,
        "complete": precision.complete or None,
    }
    known = {name: value for name, value in settings.items() if value is not None}
    return {"default": precision.default, "layers": dict(precision.layers)} | known
