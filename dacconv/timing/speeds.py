"""The interface of a source of times, and the target that they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dacconv.errors import UsageError
from dacconv.graph.types import Choice, Layer
from dacconv.support.machine import cores

ONNXRUNTIME, TORCH, TORCH_NN = "onnxruntime", "torch", "torch.nn"
"""Runtimes. A form consists of layers of torch.nn under ``torch.nn``, of calls under ``torch``."""


class Speeds(Protocol):
    """A source of times: measured in the runtime, or predicted."""

    @property
    def measured(self) -> bool:
        """Whether the times are measured; if so, a layer that is not faster is not split."""
        ...

    def __call__(self, layer: Layer, choice: Choice, forms: Sequence[str]) -> Mapping[str, float]:
        """The time of a split in each form over that of the conv; empty where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """The runtime, threads and device that the converted model will run with."""

    runtime: str
    threads: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class TimingOptions:
    """Options for timing the layers of a model.

    ``target`` is ``onnxruntime`` or ``torch``, by default the runtime of the model's format;
    ``threads`` is the number of cores by default. ``timings`` is the file of measured times.
    """

    tune: bool = False
    target: str | None = None
    threads: int | None = None
    device: str | None = None
    timings: Path | None = None


def target_for(engine: str, options: TimingOptions) -> Target:
    """The target of a model that ``engine`` runs; see ``Model.engine``.

    Raises:
        UsageError: the runtime is unknown, or does not support the device.
    """
    runtime = options.target or (ONNXRUNTIME if engine == ONNXRUNTIME else TORCH)
    if runtime not in (ONNXRUNTIME, TORCH):
        raise UsageError(f"'{runtime}' is not onnxruntime or torch", where="--target")
    device = options.device or "cpu"
    if runtime == ONNXRUNTIME and device != "cpu":
        raise UsageError(
            f"layers are timed on the cpu in ONNX Runtime, not on {device}", where="--device"
        )
    if runtime == TORCH and engine == TORCH_NN:
        runtime = TORCH_NN
    return Target(runtime, options.threads or cores(), device)
