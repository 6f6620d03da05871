"""All factors tuned together on the calibration inputs, where the model can be differentiated.

The first half of the steps sees only the inputs to fit to, so that the held-out half and the
second family can judge; where both agree, the second half of the steps sees all inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dacconv.calibration.inputs.families import Inputs
from dacconv.calibration.study import Rebuilt, Target, relative_error
from dacconv.decompositions import METHODS
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Differentiable, Feeds, Model
from dacconv.formats.inputs import count_samples, joined
from dacconv.graph.cost import shared_cost
from dacconv.graph.layers import survey
from dacconv.support.progress import Progress
from dacconv.support.threads import fixed_torch_threads

if TYPE_CHECKING:
    from dacconv.formats.base import Forward
    from dacconv.formats.torch.descent import Factored, Measured

STEPS = {"synthetic": 120, "distilled": 300, "real": 600}
"""Steps over both halves of the tuning: more where inputs are worth more."""
SAMPLES = 16
"""Samples per step."""
FEWEST = 40
"""Steps below which tuning is not worth its while."""
MAX_MACS = 6 * 10**12
"""Multiply-adds that it may take: some minutes on two cores."""
PASSES = 4
"""What a sample costs in runs of the original: the teacher, the split model, and back."""


def tuned(
    model: Model,
    targets: Sequence[Target],
    found: Mapping[str, Rebuilt],
    inputs: Inputs,
    *,
    device: str | None,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Rebuilt], str]:
    """The factors in ``found`` tuned together, or as they are; and what was done in words."""
    steps = steps_for(model, inputs)
    mine = [target for target in targets if target.name in found]
    if not steps or not mine:
        return dict(found), "the factors were not tuned together: that would take long"
    if not isinstance(model, Differentiable):
        reason = "a model of this format gives no gradients"
        return dict(found), f"the factors were not tuned together: {reason}"
    try:
        nodes = [target.node for target in mine]
        with model.differentiable(nodes, device=device) as run, fixed_torch_threads():
            made = _tuned(run, mine, found, inputs, steps, device, seed, progress)
    except UnsupportedError as error:
        return dict(found), f"the factors were not tuned together: {error.what}"
    if made is None:
        return dict(found), "tuning the factors together did not help"
    return {**found, **made}, f"the factors were then tuned together in {steps} steps"


def steps_for(model: Model, inputs: Inputs) -> int:
    """How many steps are affordable; 0 where those are not worth their while."""
    per_step = max(SAMPLES, count_samples(inputs.fitted[:1]))
    steps = min(STEPS[inputs.kind], MAX_MACS // max(PASSES * per_step * model_macs(model), 1))
    return steps if steps >= FEWEST else 0


def in_full(model: Model, inputs: Inputs) -> bool:
    """Whether the factors will be tuned in as many steps as are worth taking."""
    return isinstance(model, Differentiable) and steps_for(model, inputs) == STEPS[inputs.kind]


def model_macs(model: Model) -> int:
    """The multiply-adds of one sample, as far as they are known."""
    layers = [layer for layer in survey(model.graph()) if layer.geometries]
    return sum(shared_cost(layer.geometries).macs or 0 for layer in layers)


def _tuned(
    run: Forward,
    targets: Sequence[Target],
    found: Mapping[str, Rebuilt],
    inputs: Inputs,
    steps: int,
    device: str | None,
    seed: int,
    progress: Progress,
) -> dict[str, Rebuilt] | None:
    """The tuned factors; None where the held-out half or the second family is against them."""
    from dacconv.formats.torch.descent import measure, tune
    from dacconv.formats.torch.gradients import place_for

    place = place_for(device)
    rng = np.random.default_rng(seed)
    half = steps // 2
    start = [_factored(target, found[target.name]) for target in targets]
    powers = measure(run, start, inputs.fitted, place).powers
    trial = tune(
        run,
        start,
        powers,
        _drawn(inputs, inputs.fitted, half, rng),
        half,
        place,
        lambda done: progress("tuning factors together", done, steps),
    )
    if trial is None:
        return None
    judged = None
    for family in (inputs.held, *inputs.judges):
        before, after = (measure(run, factors, family, place) for factors in (start, trial))
        judged = judged or after
        if not _harm(after) < _harm(before):
            return None
    final = tune(
        run,
        trial,
        powers,
        _drawn(inputs, (*inputs.fitted, *inputs.held), steps - half, rng),
        steps - half,
        place,
        lambda done: progress("tuning factors together", half + done, steps),
    )
    if final is None or judged is None:
        return None
    progress("tuning factors together", steps, steps)
    known = measure(run, final, inputs.fitted, place).errors
    return {
        target.name: replace(
            found[target.name],
            factors=layer.factors,
            bias=layer.bias,
            predicted=known[target.node],
            held=judged.errors[target.node],
            what=f"{found[target.name].what}, tuned",
        )
        for target, layer in zip(targets, final, strict=True)
    }


def _harm(done: Measured) -> float:
    return relative_error(done.expected, done.actual)


def _factored(target: Target, found: Rebuilt) -> Factored:
    from dacconv.formats.torch.descent import Factored

    bias = target.bias if found.bias is None else found.bias
    text = METHODS[found.method].formula.text
    return Factored(target.node, target.conv, text, found.factors, bias)


def _drawn(
    inputs: Inputs, batches: Sequence[Feeds], steps: int, rng: np.random.Generator
) -> Iterator[list[Feeds]]:
    """The batches of each step, ``SAMPLES`` jittered samples together, each sample in its turn.

    Batches are as large as the given ones; samples are mixed where inputs can be told apart.
    """
    size = count_samples(batches[:1])
    pool = _apart(batches)
    per_batch = size if len(pool) > len(batches) else 1
    per_step = per_batch * max(1, SAMPLES // size)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < per_step:
            waiting += rng.permutation(len(pool)).tolist()
        taken, waiting = waiting[:per_step], waiting[per_step:]
        cuts = range(0, per_step, per_batch)
        batches = [joined([pool[i] for i in taken[k : k + per_batch]]) for k in cuts]
        yield [inputs.image_input.augmented(feeds, rng) for feeds in batches]


def _apart(batches: Sequence[Feeds]) -> Sequence[Feeds]:
    """The samples one by one; the batches as they are where an input has no batch axis."""
    sizes = [{len(array) if array.ndim else 0 for array in feeds.values()} for feeds in batches]
    if any(len(size) > 1 or 0 in size for size in sizes):
        return batches
    return [
        {name: array[i : i + 1] for name, array in feeds.items()}
        for feeds, (size,) in zip(batches, sizes, strict=True)
        for i in range(size)
    ]
