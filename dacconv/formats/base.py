"""The protocol of an opened model. The rest of dacconv uses models only through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from dacconv.graph.types import Affine, Array, Construct, Conv, Graph, Plan, Rewrite, ValueSpec

Feeds = Mapping[str, Array]
Runner = Callable[[Feeds], dict[str, Array]]
"""Runs a model once: from arrays by input name to arrays by output name, in the model's order."""
Visit = Callable[[str, Sequence[Array]], Sequence[Array]]
"""Takes the place of a conv: from the node's name and its input for each batch to its outputs."""
Stop = Callable[[str, Any], Any]
"""Takes the place of a conv while gradients are computed: from the node's name and its input, a
torch tensor, to its output."""
Forward = Callable[[Feeds, Stop], dict[str, Array]]
"""Runs a model once in torch with gradients; returns its outputs as arrays, without gradients."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The user's options for opening a model.

    ``input_shapes`` maps an input name (``""``: the only or first input) to its shape.
    ``arch`` is ``package.module:factory`` or ``file.py:factory`` and ``arch_args`` are its
    keyword arguments. ``key`` picks the entry of a checkpoint that holds the state dict.
    ``trust_pickle`` allows a pickle to run code. ``vouched`` are globs of the names of layers that
    the user declares to be plain convs, where a file with weights alone does not show it.
    """

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    trust_pickle: bool = False
    vouched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """The record in a converted file: where it comes from, and the plan that was carried out.

    Both are plain data; ``provenance`` has the keys of :class:`dacconv.graph.types.Provenance`.
    """

    provenance: Mapping[str, Any]
    plan: Mapping[str, Any]


@runtime_checkable
class InMemory(Protocol):
    """A model that was not read from a file; ``sha256`` is the digest of its weights."""

    @property
    def sha256(self) -> str:
        """Hexadecimal."""
        ...


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
        """The reason why this model cannot be run; None if it can."""
        ...

    @property
    def runtime(self) -> str:
        """The runtime of ``runner`` and its version: ``onnxruntime 1.23.0``."""
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
        """The constructs that can be written besides chains, for convs with ``axes`` spatial axes.

        With ``own_layers`` also those that need ``dacconv.nn`` when the model is loaded.
        """
        ...

    def rewrite_refusal(self, edit: Rewrite, among: Sequence[Rewrite] = ()) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not.

        ``among`` are all the edits of that rewrite: a module that is called several times can
        be merged with others only if that is done at every call.
        """
        ...

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with the edits applied; weights are cast to the target's own dtype."""
        ...

    def precision_refusal(self, precision: str) -> str | None:
        """The reason why the model cannot be written in a precision; None if it can.

        ``precision`` is one of ``graph.precision.PRECISIONS``. The reason says what to do instead.
        """
        ...

    def runner(self, *, threads: int | None = None) -> Runner:
        """A function that runs the model in its real runtime, which loads it once.

        Raises:
            UnsupportedError: the runtime rejects the model; the message quotes it.
        """
        ...

    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs of the runner, with the user's ``input_shapes`` applied."""
        ...

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write the model in its own format; return every file that was written.

        ``path`` and its side files (external data, plan) are complete or absent. The same
        model, provenance and plan give the same bytes.
        """
        ...

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The files that ``save(path)`` would write beside ``path`` (not ``path`` itself).

        Without those whose names follow from their bytes; see ``Replacing``.
        """
        ...


@runtime_checkable
class Replacing(Protocol):
    """A model with side files that have other names each time, so that no old one is replaced."""

    def replaced_files(self, path: Path) -> tuple[Path, ...]:
        """The side files of earlier models at ``path``, which are of no use after ``save``."""
        ...


@runtime_checkable
class Unoptimised(Protocol):
    """A model that its runtime can run in a second way, which rounds in another order."""

    def unoptimised_runner(self, *, threads: int | None = None) -> Runner | None:
        """As ``runner``, without the runtime's optimisations; None where that costs too much.

        Raises:
            UnsupportedError: the runtime does not run it like that.
        """
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
            UnsupportedError: the runtime cannot run the model in parts; the message says why.
        """
        ...


@runtime_checkable
class Divisible(Protocol):
    """A model that can be run up to a node and from there on, even by another model.

    Models that only differ from a node on have the same live values before it, so that the values
    that one of them has computed serve the others.
    """

    def live(self, node: str) -> tuple[str, ...]:
        """The names of the values from before ``node`` that it or what follows it reads.

        Raises:
            UnsupportedError: the model cannot be divided; the message says why.
        """
        ...

    def resume(
        self, values: Feeds, outputs: Sequence[str] | None = None, *, threads: int | None = None
    ) -> Runner:
        """A function from live values to the values ``outputs`` (by default those of the model).

        ``values`` are examples of the live values, for their types.

        Raises:
            UnsupportedError: the runtime cannot run the model in parts; the message says why.
        """
        ...


@dataclass(frozen=True, slots=True)
class Int8Recipe:
    """How a model is quantised to int8.

    ``kept`` are the layer nodes that stay in floating point, ``activations`` is ``uint8`` or
    ``int8`` (symmetric), ``ranges`` one of ``graph.precision.RANGES``. ``reduce_range`` gives
    weights 7 bits. ``correct_bias`` adds to the biases what rounding the weights takes from the
    mean of the outputs.
    """

    kept: frozenset[str] = frozenset()
    activations: str = "uint8"
    ranges: str = "min-max"
    reduce_range: bool = False
    correct_bias: bool = False


class Quantiser(Protocol):
    """A model whose activations were measured, so that it can be quantised in several ways."""

    @property
    def layers(self) -> frozenset[str]:
        """The nodes of layers that can be int8."""
        ...

    @property
    def reasons(self) -> Mapping[str, str]:
        """The nodes of layers that cannot be int8, with the reason for each."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts for the reader of a report."""
        ...

    def quantised(self, recipe: Int8Recipe) -> Model:
        """The model with its layers in int8, except those that the recipe keeps."""
        ...

    def runner_as_written(self, model: Model) -> Runner:
        """A function that runs a quantised model without the runtime's optimiser."""
        ...


@runtime_checkable
class Quantisable(Protocol):
    """A model of a format that has int8 layers."""

    def quantiser(self, batches: Sequence[Feeds], *, threads: int | None = None) -> Quantiser:
        """Measure the ranges of the activations on some inputs.

        Raises:
            UnsupportedError: the model cannot be quantised; the message says why.
        """
        ...


@runtime_checkable
class HalfStorable(Protocol):
    """A model of a format that can store weights in half precision and compute in float32."""

    def stored_in_half(self, layers: Mapping[str, str]) -> tuple[Model, dict[str, str]]:
        """The model with the weights of some layer nodes stored in ``fp16`` or ``bf16``.

        ``layers`` maps nodes to these. Also returns the reason for each node that stays as it is.
        """
        ...


@runtime_checkable
class Differentiable(Protocol):
    """A model through which torch can compute gradients."""

    def differentiable(
        self, nodes: Sequence[str], *, device: str | None
    ) -> AbstractContextManager[Forward]:
        """A function that runs the model, with ``stop`` in the place of the convs ``nodes``.

        All values are float32 and on ``device`` (by default CUDA if it is available); the
        model's own weights have no gradients.

        Raises:
            UnsupportedError: torch is not installed, or cannot run the model; the message says why.
        """
        ...
