"""Taking gradients through a module: where, and of what."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dacconv.errors import UsageError
from dacconv.formats.base import Feeds, Forward, Stop
from dacconv.formats.torch.members import own_methods, parameters
from dacconv.formats.torch.module.run import as_arguments, flat_outputs
from dacconv.formats.torch.module.walk import stopping
from dacconv.graph.types import Array
from dacconv.support.user_code import user_code

M = TypeVar("M", bound=nn.Module)


def place_for(device: str | None) -> torch.device:
    """The device of that name; by default CUDA where there is one.

    Raises:
        UsageError: torch has no such device here.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"'{device}' cannot be used: {said}", where="--device") from error
    return place


def frozen(module: M, place: torch.device) -> M:
    """A copy in float32 at ``place`` whose parameters take no gradients."""
    clone = copy.deepcopy(module)
    with own_methods(clone):
        clone = clone.to(place).float()
    for parameter in parameters(clone):
        parameter.requires_grad_(False)
    return clone


@contextmanager
def differentiable_module(
    module: nn.Module,
    sites: Mapping[str, str],
    nodes: Sequence[str],
    *,
    device: str | None,
    where: Path,
) -> Iterator[Forward]:
    """See ``models.base.Differentiable``; ``sites`` are the names of the modules at the nodes."""
    place = place_for(device)
    copied = frozen(module, place)
    with stopping(copied, sites, nodes) as begin:

        def run(feeds: Feeds, stop: Stop) -> dict[str, Array]:
            begin(stop)
            args, kwargs = as_arguments(copied, feeds)
            with user_code("the model's forward, for gradients,", str(where)):
                result = copied(
                    *(tensor.to(place) for tensor in args),
                    **{name: tensor.to(place) for name, tensor in kwargs.items()},
                )
            return flat_outputs(result)

        yield run
