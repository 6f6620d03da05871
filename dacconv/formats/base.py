"""What every model adapter offers. The rest of dacconv knows models only through this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from dacconv.graph.types import Affine, Array, Construct, Conv, Graph, Plan, Rewrite, ValueSpec

Feeds = Mapping[str, Array]
Runner = Callable[[Feeds], dict[str, Array]]
"""Runs a model once: input name -> array in, output name -> array out, in the model's order."""
Visit = Callable[[str, Sequence[Array]], Sequence[Array]]
"""Stands in for a conv: node name and its input, per batch, in; its output, per batch, out."""
Stop = Callable[[str, Any], Any]
"""Stands in for a conv while gradients are taken: node name and input, a torch tensor, in; its
output out."""
Forward = Callable[[Feeds, Stop], dict[str, Array]]
"""Runs a model once in torch, so that gradients flow through it; its outputs without them."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user says about how to open a model.

    ``input_shapes`` maps an input name (``""``: the only or first input) to its shape.
    ``arch`` is ``package.module:factory`` or ``file.py:factory`` and ``arch_args`` are its
    keyword arguments. ``key`` picks the entry of a checkpoint that holds the state dict.
    ``trust_pickle`` allows a pickle to run code. ``vouched`` are globs of layer names for which
    the user vouches that they are plain convs, where a weights-only file cannot tell.
    """

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    trust_pickle: bool = False
    vouched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """What a converted file says of itself: where it comes from, and what was done.

    Both as plain data; ``provenance`` has the keys of :class:`dacconv.graph.types.Provenance`.
    """

    provenance: Mapping[str, Any]
    plan: Mapping[str, Any]


class Model(Protocol):
    """An opened checkpoint. Immutable: ``rewrite`` returns a new one."""

    @property
    def format(self) -> str:
        """``onnx``, ``pt2``, ``state_dict``, ``weights`` (no architecture) or ``module``."""
        ...

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        ...

    @property
    def options(self) -> LoadOptions:
        """The options that it was opened with."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """``path`` and the files that belong to it, such as external data."""
        ...

    @property
    def has_dataflow(self) -> bool:
        """Whether the file says which layer reads which; state dicts alone do not."""
        ...

    @property
    def named_layers(self) -> bool:
        """Whether a split layer is torch.nn layers that users know by name."""
        ...

    @property
    def engine(self) -> str:
        """What runs its layers: ``onnxruntime``, ``torch`` (calls) or ``torch.nn`` (layers)."""
        ...

    @property
    def runnable(self) -> str | None:
        """None when ``run`` works, else the reason why this model cannot be run, in words."""
        ...

    @property
    def runtime(self) -> str:
        """What ``runner`` runs it with, and its version: ``onnxruntime 1.23.0``."""
        ...

    def graph(self) -> Graph:
        """The dataflow, in order of execution; computed once and cached."""
        ...

    def conv(self, node: str) -> Conv:
        """The conv at a node whose op is conv, conv_transpose or linear; own dtype, not copied.

        A linear layer is a conv without spatial axes; see :class:`~dacconv.graph.types.Conv`.
        """
        ...

    def affine(self, node: str) -> Affine:
        """The per-channel affine at a node whose op is ``affine``, in float64."""
        ...

    def statistics(self, node: str) -> tuple[Array, Array] | None:
        """The running mean and variance of a BatchNorm, in float64; None for any other node."""
        ...

    def constructs(self, axes: int, *, own_layers: bool) -> frozenset[Construct]:
        """What can be written besides chains of convs, for convs of ``axes`` spatial axes.

        With ``own_layers`` also what needs ``dacconv.nn`` where the model is loaded.
        """
        ...

    def rewrite_refusal(self, edit: Rewrite) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not."""
        ...

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with the edits applied; weights are cast to the target's own dtype."""
        ...

    def runner(self, *, threads: int | None = None) -> Runner:
        """A function that runs the model in its real runtime, loaded once and kept warm.

        Raises:
            UnsupportedError: the runtime rejects the model; says what the runtime said.
        """
        ...

    def inputs(self) -> tuple[ValueSpec, ...]:
        """What the runner takes, with the user's ``input_shapes`` applied."""
        ...

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write in the format that the model came in; return every file that was written.

        ``path`` and its side files (external data, plan) are complete or absent. The same
        model, provenance and plan give the same bytes.
        """
        ...

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The files that ``save(path)`` would write beside ``path`` (not ``path`` itself)."""
        ...


@runtime_checkable
class Walkable(Protocol):
    """A model that can be run conv by conv, so that statistics are taken in one pass."""

    def walk(
        self,
        nodes: Sequence[str],
        visit: Visit,
        batches: Sequence[Feeds],
        *,
        threads: int | None = None,
    ) -> list[dict[str, Array]]:
        """Run once over all batches in step; ``visit`` takes the place of the convs ``nodes``.

        It is called in order of execution, once per call of the conv, with the conv's input
        for every batch. Returns the outputs of every batch.

        Raises:
            UnsupportedError: the runtime cannot run the model in parts; says why.
        """
        ...


@runtime_checkable
class Divisible(Protocol):
    """A model that can be run up to a node, and from there on: by another model, even.

    Models that differ only from a node on have the same live values before it, so that what
    one of them has computed serves the others.
    """

    def live(self, node: str) -> tuple[str, ...]:
        """The names of the values from before ``node`` that it or what follows it reads.

        Raises:
            UnsupportedError: the model cannot be cut; says why.
        """
        ...

    def resume(
        self, given: Feeds, wanted: Sequence[str] | None = None, *, threads: int | None = None
    ) -> Runner:
        """A function from live values to the values ``wanted`` (by default the outputs).

        ``given`` are live values such as it will be fed, for their types.

        Raises:
            UnsupportedError: the runtime cannot run the model in parts; says why.
        """
        ...


@runtime_checkable
class Differentiable(Protocol):
    """A model that torch can take gradients through."""

    def differentiable(
        self, nodes: Sequence[str], *, device: str | None
    ) -> AbstractContextManager[Forward]:
        """A function that runs the model, with ``stop`` in the place of the convs ``nodes``.

        Everything is float32 and on ``device`` (by default CUDA where there is one); the
        model's own weights take no gradients.

        Raises:
            UnsupportedError: torch is not installed, or cannot run the model; says why.
        """
        ...
