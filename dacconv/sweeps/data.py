"""Labelled images for top-1, in batches of several images."""

from __future__ import annotations

from dacconv.calibration.inputs.image_input import find_image_input
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.user_data import UserData, feeds_maker
from dacconv.errors import UsageError
from dacconv.formats.base import Model, Runner
from dacconv.sweeps.judges import Labelled, chunk, stackable


def judge(
    model: Model, runner: Runner, data: UserData, options: InputOptions, largest: int
) -> Labelled:
    """The data as inputs of the model, in batches of several images.

    Raises:
        UsageError: the images have no labels or not the model's size, or it has several inputs.
    """
    if data.labels is None:
        raise UsageError("has no labels", where=data.name)
    feeds, _ = feeds_maker(model, data, options)
    shape = find_image_input(model, options.layout).spec.shape
    fixed = int((shape or (0,))[0] or 0)
    free = not fixed or (fixed == 1 and stackable(runner, [feeds(0, 1), feeds(1, 1)]))
    step = chunk(largest) if free else fixed
    count = len(data.images) if free else len(data.images) // step * step
    starts = range(0, count, step)
    return Labelled([feeds(i, step) for i in starts], [data.labels[i : i + step] for i in starts])
