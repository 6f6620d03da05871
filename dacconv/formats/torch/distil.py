"""Images moved until the BatchNorms of a network see the statistics that they have stored.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", arXiv 2001.00281, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dacconv.formats.torch.convs import NORMS
from dacconv.formats.torch.gradients import frozen, place_for
from dacconv.formats.torch.members import modules
from dacconv.graph.types import FloatArray
from dacconv.support.progress import Progress
from dacconv.support.threads import fixed_torch_threads

STEPS = 120
BATCH = 64
RATE = 0.1

Seen = Callable[[torch.Tensor], list[torch.Tensor]]
"""Images to the inputs of the BatchNorms, ``(batch, channels, *size)`` each."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What one BatchNorm has stored: mean and variance per channel."""

    mean: torch.Tensor
    variance: torch.Tensor


@fixed_torch_threads()
def distil(
    seen: Seen,
    stored: Sequence[Stored],
    images: FloatArray,
    *,
    low: FloatArray,
    high: FloatArray,
    device: str | None,
    progress: Progress,
) -> FloatArray:
    """Images ``(count, channels, *size)`` after ``STEPS`` steps, within ``low`` and ``high``."""
    shape = (1, -1, *(1,) * (images.ndim - 2))
    place = place_for(device)
    bounds = [
        torch.tensor(np.asarray(b, np.float32), device=place).view(shape) for b in (low, high)
    ]
    bounds = [torch.minimum(*bounds), torch.maximum(*bounds)]
    whole = max(1, math.ceil(len(images) / BATCH))
    parts = np.array_split(np.asarray(images, np.float32), whole)
    made = []
    for index, part in enumerate(parts):

        def told(step: int, index: int = index) -> None:
            progress("distilling images", index * STEPS + step, whole * STEPS)

        made.append(_descend(seen, stored, torch.from_numpy(part).to(place), bounds, told))
    progress("distilling images", whole * STEPS, whole * STEPS)
    return np.concatenate(made)


def _descend(
    seen: Seen,
    stored: Sequence[Stored],
    start: torch.Tensor,
    bounds: Sequence[torch.Tensor],
    told: Callable[[int], None],
) -> FloatArray:
    x = start.clone().requires_grad_(True)
    span = float((bounds[1] - bounds[0]).mean())
    optimiser = torch.optim.Adam([x], lr=RATE, betas=(0.9, 0.99))
    for step in range(STEPS):
        told(step)
        rate = 0.5 * (1 + math.cos(math.pi * step / STEPS)) + 0.02
        optimiser.param_groups[0]["lr"] = 0.25 * RATE * rate * max(span, 1e-6)
        optimiser.zero_grad()
        with torch.enable_grad():
            loss = _mismatch(seen(x), stored)
            if not bool(torch.isfinite(loss)):
                break
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            x.copy_(torch.maximum(torch.minimum(x, bounds[1]), bounds[0]))
    return np.asarray(x.detach().cpu().numpy(), np.float32)


def _mismatch(values: Sequence[torch.Tensor], stored: Sequence[Stored]) -> torch.Tensor:
    """Means and deviations against the stored ones, in units of the stored deviation."""
    total = torch.zeros(())
    for value, want in zip(values, stored, strict=True):
        axes = (0, *range(2, value.ndim))
        mean, variance = value.mean(axes), value.var(axes, unbiased=False)
        deviation = (want.variance.to(value) + 1e-8).sqrt()
        offset = ((mean - want.mean.to(value)) / deviation).square().mean()
        scale = ((variance + 1e-8).sqrt() / deviation - 1).square().mean()
        total = total.to(value.device) + offset + scale
    return total


def distil_module(
    module: nn.Module,
    images: FloatArray,
    *,
    low: FloatArray,
    high: FloatArray,
    device: str | None,
    progress: Progress,
) -> FloatArray | None:
    """:func:`distil` for a module in eval mode that is the caller's own.

    None where it has no BatchNorm with stored statistics that it runs through.
    """
    place = place_for(device)
    module = frozen(module, place)
    values: list[torch.Tensor] = []
    norms: list[nn.Module] = []

    def note(norm: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        values.append(given[0].clone() if given[0].is_leaf else given[0])
        norms.append(norm)

    wanted = [m for m in modules(module) if isinstance(m, NORMS) and m.running_var is not None]
    hooks = [norm.register_forward_pre_hook(note) for norm in wanted]
    try:
        with torch.no_grad():
            module(torch.from_numpy(np.asarray(images[:1], np.float32)).to(place))
        stored = [Stored(norm.running_mean, norm.running_var) for norm in norms]  # type: ignore[arg-type]
        if not stored:
            return None

        def seen(x: torch.Tensor) -> list[torch.Tensor]:
            values.clear()
            module(x)
            return list(values)

        return distil(seen, stored, images, low=low, high=high, device=device, progress=progress)
    finally:
        for hook in hooks:
            hook.remove()
