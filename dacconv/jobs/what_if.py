"""What a network would cost with another width or on images of another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dacconv.conversion.report import Report
from dacconv.conversion.report_build import build_report
from dacconv.errors import DacconvError, UnsupportedError, UsageError
from dacconv.formats import resized
from dacconv.formats.base import Model
from dacconv.formats.inputs import make_inputs, reason_not_runnable
from dacconv.graph.types import Geometry, ValueSpec
from dacconv.graph.what_if import Totals, WhatIf, compared, with_width

OPTION = "--what-if"
_HOW = "as in --what-if width=0.5 --what-if resolution=160, or resolution=160x120"
_IMAGE_CHANNELS = (1, 3, 4)
RETRAINING = (
    "width={width:g} is another network: it has to be trained anew; channels are rounded to whole "
    "numbers, and inputs and outputs keep theirs"
)


@dataclass(frozen=True, slots=True)
class Question:
    """The width multiplier, and the height and width of the images or None."""

    width: float = 1.0
    size: tuple[int, int] | None = None


def parse_question(texts: Sequence[str]) -> Question | None:
    """What the options ask; None where there are none.

    Raises:
        UsageError: an unknown name, a number that makes no sense, or a name given twice.
    """
    if not texts:
        return None
    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in ("width", "resolution") or not equals:
            raise UsageError(f"unknown question '{text}'", where=OPTION, hint=_HOW)
        if name in given:
            raise UsageError(f"{name} is given twice", where=OPTION, hint=_HOW)
        given[name] = value
    width = 1.0
    if "width" in given:
        try:
            width = float(given["width"])
        except ValueError:
            width = 0.0
        if not 0.01 <= width <= 100:
            message = f"width={given['width']} is no multiplier from 0.01 to 100"
            raise UsageError(message, where=OPTION, hint=_HOW)
    size = _parse_size(given["resolution"]) if "resolution" in given else None
    return Question(width, size)


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    sizes = [int(part) for part in parts if part.isdecimal() and len(part) < 6]
    if len(sizes) != len(parts) or len(parts) not in (1, 2) or min(sizes) < 1:
        raise UsageError(f"resolution={text} is no size of images", where=OPTION, hint=_HOW)
    return sizes[0], sizes[-1]


def answer(model: Model, question: Question) -> WhatIf:
    """The costs of the network with that width and resolution, beside its own.

    Where the model runs at the new resolution is tried: it is run once.

    Raises:
        UsageError: the model has no images, or does not take the new size.
        UnsupportedError: its sizes are not known, or no file of its format can be resized.
    """
    own = build_report(model.format, model.graph())
    if own.before.macs is None:
        raise UnsupportedError(
            "the costs are not known without the sizes", where=OPTION,
            hint="give --input-shape, and --arch for a state dict",
        )  # fmt: skip
    other, notes = model, []
    if question.size is not None:
        other = _at_size(model, question.size)
        size = "x".join(map(str, question.size))
        notes.append(f"resolution={size} needs no training: the network was run at {size}")
    graph = with_width(other.graph(), question.width)
    if question.width != 1:
        notes.append(RETRAINING.format(width=question.width))
    report = build_report(model.format, graph)
    return WhatIf(
        width=question.width,
        resolution=question.size,
        rows=compared(_costs(own), _costs(report)),
        before=_totals(own),
        after=_totals(report),
        notes=tuple(notes),
    )


def _costs(report: Report) -> dict[str, tuple[Geometry | None, int | None, int]]:
    return {row.name: (row.geometry, row.before.macs, row.before.params) for row in report.rows}


def _totals(report: Report) -> Totals:
    params = report.before.params + sum(entry.params for entry in report.uncounted)
    return Totals(report.before.macs, params)


def _at_size(model: Model, size: tuple[int, int]) -> Model:
    """The model on images of another size, which it has been run on."""
    specs = model.inputs()
    shapes = {spec.name: _resized_shape(spec, size) for spec in specs if _is_image(spec)}
    if not shapes:
        raise UsageError("no input of the model is an image", where=f"{OPTION} resolution")
    other = resized(model, shapes)
    where = f"{OPTION} resolution={size[0]}x{size[1]}"
    hint = (
        "a head of a fixed size, such as a linear layer on all positions, takes no other size; "
        "--what-if width=... can still be asked"
    )
    if reason := reason_not_runnable(other):
        raise UnsupportedError(reason, where=where, hint=hint)
    try:
        other.runner()(make_inputs(other.inputs(), np.random.default_rng(0)))
    except DacconvError as error:
        what = f"the network does not run on {size[0]}x{size[1]} images: {error.what}"
        raise UnsupportedError(what, where=where, hint=hint) from error
    return other


def _is_image(spec: ValueSpec) -> bool:
    return spec.shape is not None and len(spec.shape) == 4


def _resized_shape(spec: ValueSpec, size: tuple[int, int]) -> tuple[int, ...]:
    batch, *rest = spec.shape or ()
    last = rest[-1] in _IMAGE_CHANNELS and rest[0] not in _IMAGE_CHANNELS
    channels = rest[-1] if last else rest[0]
    sizes = (*size, channels) if last else (channels, *size)
    return tuple(int(each or 1) for each in (batch, *sizes))
