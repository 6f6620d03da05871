"""The interface between the choice of a form and where times come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer

ONNXRUNTIME, TORCH, TORCH_NN = "onnxruntime", "torch", "torch.nn"
"""Runtimes. Under ``torch.nn`` a form is made of plain layers, under ``torch`` of calls."""


class Speeds(Protocol):
    """A source of times: measured in the runtime, or predicted."""

    @property
    def measured(self) -> bool:
        """Whether the times are measured: a split that is not faster is then not made."""
        ...

    def __call__(self, layer: Layer, choice: Choice, forms: Sequence[str]) -> Mapping[str, float]:
        """The time of a split in each form over that of the conv; empty where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where the converted model is going to run."""

    runtime: str
    threads: int
    device: str = "cpu"


def target_for(
    format: str, runtime: str | None, threads: int | None, device: str | None, cores: int
) -> Target:
    """The target of a model of that format; ``runtime`` is ``onnxruntime`` or ``torch``.

    Raises:
        UsageError: no such runtime, or a device that it is not for.
    """
    own = ONNXRUNTIME if format == "onnx" else TORCH
    wanted = runtime or own
    if wanted not in (ONNXRUNTIME, TORCH):
        raise UsageError(f"'{wanted}' is not onnxruntime or torch", where="--target")
    where = device or "cpu"
    if wanted == ONNXRUNTIME and where != "cpu":
        raise UsageError(
            f"layers are timed on the cpu in ONNX Runtime, not on {where}", where="--device"
        )
    if wanted == TORCH and format not in ("onnx", "pt2"):
        wanted = TORCH_NN
    return Target(wanted, threads or cores, where)
