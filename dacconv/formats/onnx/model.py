"""The ONNX adapter: an opened ONNX file behind the model protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from onnx import GraphProto, TensorShapeProto, ValueInfoProto

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Forward, LoadOptions, Quantiser, Runner, Visit
from dacconv.formats.onnx.affine import batch_norm, loose_affine, loose_affine_axis
from dacconv.formats.onnx.constants import Constants
from dacconv.formats.onnx.document import Document, Entry
from dacconv.formats.onnx.fixed_sizes import FixedSizes, GraphFacts
from dacconv.formats.onnx.graph import graph_of
from dacconv.formats.onnx.inputs import declared_specs, input_specs, real_inputs
from dacconv.formats.onnx.layers import read_conv
from dacconv.formats.onnx.load import read
from dacconv.formats.onnx.operators import CannotEvaluate
from dacconv.formats.onnx.rewrite import rewrite, rewrite_refusal
from dacconv.formats.onnx.run import document_session, live, resume, runner, runtime, walk
from dacconv.formats.onnx.save import data_files, inline_size, save
from dacconv.formats.onnx.shapes import InferredShapes, infer
from dacconv.graph.types import (
    Affine,
    Array,
    Construct,
    Conv,
    FloatArray,
    Graph,
    Plan,
    Rewrite,
    ValueSpec,
)
from dacconv.support.progress import Progress


def load(path: Path, options: LoadOptions) -> OnnxModel:
    """Open an ONNX file without running anything in it.

    Raises:
        FormatError: the file cannot be read or is damaged.
        UnsupportedError: it is too old.
        UsageError: ``options.input_shapes`` contradict the model.
    """
    document = read(path)
    model = OnnxModel(path, document, options)
    model.inputs()
    return model


UNOPTIMISED_LIMIT = 1 << 30
"""Bytes of a model up to which it is run without optimisations too."""


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """An ONNX model. Immutable; computed properties are cached."""

    format: ClassVar[str] = "onnx"
    has_dataflow: ClassVar[bool] = True
    named_layers: ClassVar[bool] = False
    engine: ClassVar[str] = "onnxruntime"

    path: Path
    document: Document
    options: LoadOptions

    @property
    def files(self) -> tuple[Path, ...]:
        """The ONNX file and its external data."""
        return (self.path, *self.document.side_files)

    @property
    def runtime(self) -> str:
        """``onnxruntime`` and its version."""
        return runtime()

    @property
    def runnable(self) -> str | None:
        """None: whether it runs is only known once the runtime loads it."""
        return None

    @cached_property
    def constants(self) -> Constants:
        """The constants of the graph."""
        return Constants(self.document)

    @cached_property
    def _inputs(self) -> tuple[ValueSpec, ...]:
        return input_specs(self.document, self.options.input_shapes)

    @cached_property
    def inferred(self) -> InferredShapes:
        """The shapes of the values, with the user's input shapes applied."""
        return infer(self.document, self.constants, self._inputs)

    @cached_property
    def _graph(self) -> Graph:
        return graph_of(self.document, self._facts, self._inputs)

    @cached_property
    def _facts(self) -> GraphFacts:
        return GraphFacts(self.constants, self.inferred, self._sizes)

    @cached_property
    def _sizes(self) -> FixedSizes:
        declared = declared_specs(self.document)
        same = declared == self._inputs
        fixed = self.inferred if same else infer(self.document, self.constants, declared)
        return FixedSizes(self.constants, fixed)

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.document.entries}

    def graph(self) -> Graph:
        """The dataflow, nodes in the order of the file."""
        return self._graph

    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs of the runner; an initializer that is also an input is not among them."""
        return self._inputs

    def conv(self, node: str) -> Conv:
        """The conv, transposed conv or linear layer at ``node``, its weight in its own dtype.

        Raises:
            UnsupportedError: the node is none of these, or its weight cannot be read.
        """
        entry = self._entry(node)
        try:
            return read_conv(entry, self._facts)
        except CannotEvaluate as error:
            raise UnsupportedError(f"{node}: {error}", where=str(self.path)) from error

    def affine(self, node: str) -> Affine:
        """The scale and shift at ``node``, folded in float64.

        Raises:
            UnsupportedError: the node is not affine per channel.
        """
        entry = self._entry(node)
        try:
            if entry.op == "BatchNormalization":
                return batch_norm(entry, self.constants)
            if loose_affine_axis(entry, self.constants, self.inferred) is not None:
                return loose_affine(entry, self.constants)
        except CannotEvaluate as error:
            raise UnsupportedError(f"{node}: {error}", where=str(self.path)) from error
        raise UnsupportedError(
            f"{node} ({entry.op}) is not affine per channel", where=str(self.path)
        )

    def rewrite_refusal(self, edit: Rewrite, among: Sequence[Rewrite] = ()) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not."""
        return rewrite_refusal(edit, self._facts)

    def constructs(self, axes: int, *, own_layers: bool) -> frozenset[Construct]:
        """All but interleaving: ONNX has operators for them."""
        return frozenset({"sum", "parallel", "repeat"})

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with the edits applied; unchanged weights are shared, not copied."""
        document = rewrite(self.document, self._facts, edits)
        return type(self)(self.path, document, self.options)

    def precision_refusal(self, precision: str) -> str | None:
        """None: ONNX has every precision; a single layer may have a reason."""
        return None

    def session(self, *, threads: int | None = None, optimise: bool = True) -> Any:
        """An ONNX Runtime session; ``optimise=False`` runs the graph as it is written."""
        return document_session(self.document, threads=threads, optimise=optimise)

    def runner(self, *, threads: int | None = None) -> Runner:
        """A function that runs the model in ONNX Runtime."""
        return runner(self.session(threads=threads))

    def unoptimised_runner(self, *, threads: int | None = None) -> Runner | None:
        """See ``Unoptimised``. None for a model that is too large to be in memory twice more."""
        if inline_size(self.document) > UNOPTIMISED_LIMIT:
            return None
        return runner(self.session(threads=threads, optimise=False))

    def walk(
        self,
        nodes: Sequence[str],
        visit: Visit,
        batches: Sequence[Feeds],
        *,
        threads: int | None = None,
    ) -> list[dict[str, Array]]:
        """Run the graph in parts between the convs ``nodes``; see ``Walkable``."""
        return walk(self.document, self.constants, nodes, visit, batches, threads=threads)

    def live(self, node: str) -> tuple[str, ...]:
        """See ``Divisible``."""
        return live(self.document, self.constants, node)

    def resume(
        self, values: Feeds, outputs: Sequence[str] | None = None, *, threads: int | None = None
    ) -> Runner:
        """See ``Divisible``."""
        names = self.document.outputs if outputs is None else outputs
        return resume(self.document, self.constants, values, names, threads=threads)

    def statistics(self, node: str) -> tuple[Array, Array] | None:
        """The running mean and variance of a BatchNorm, in float64; None for any other node."""
        entry = self._entry(node)
        if entry.op != "BatchNormalization":
            return None
        names = entry.proto.input[3:5]
        if any(name not in self.constants for name in names):
            return None
        mean, variance = (self.constants.value(name).astype(np.float64) for name in names)
        return mean, variance

    def distil(
        self,
        source: str,
        images: FloatArray,
        *,
        low: FloatArray,
        high: FloatArray,
        device: str | None,
        progress: Progress,
    ) -> FloatArray | None:
        """See ``calibration.prepare.Distillable``; torch computes the gradients."""
        if not any(entry.op == "BatchNormalization" for entry in self.document.entries):
            return None
        try:
            from dacconv.formats.onnx.differentiable import batch_norm_inputs
            from dacconv.formats.torch.distil import distil
        except ImportError as error:
            raise UnsupportedError("distilling needs torch, which is not installed") from error

        norms = batch_norm_inputs(self.document, self.constants, source, device)
        if norms is None:
            return None
        return distil(*norms, images, low=low, high=high, device=device, progress=progress)

    def differentiable(
        self, nodes: Sequence[str], *, device: str | None
    ) -> AbstractContextManager[Forward]:
        """See :class:`dacconv.formats.base.Differentiable`."""
        try:
            from dacconv.formats.onnx.differentiable import differentiable
        except ImportError as error:
            raise UnsupportedError("gradients need torch, which is not installed") from error
        sources = [spec.name for spec in self.inputs()]
        return differentiable(self.document, self.constants, sources, nodes, device)

    def quantiser(self, batches: Sequence[Feeds], *, threads: int | None = None) -> Quantiser:
        """See :class:`dacconv.formats.base.Quantisable`."""
        from dacconv.formats.onnx.precision.int8 import quantiser

        return quantiser(self, batches, threads=threads)

    def stored_in_half(self, layers: Mapping[str, str]) -> tuple[OnnxModel, dict[str, str]]:
        """See :class:`dacconv.formats.base.HalfStorable`."""
        from dacconv.formats.onnx.precision.half import stored_in_half

        document, reasons = stored_in_half(self.document, self.constants, layers)
        return type(self)(self.path, document, self.options), reasons

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write ONNX, with external data if the original had some or the model is too large."""
        return save(self.document, path, provenance, plan)

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """None: an external data file is named after its bytes, and so replaces no other one."""
        return ()

    def replaced_files(self, path: Path) -> tuple[Path, ...]:
        """The external data files of models that were written to ``path`` before."""
        return data_files(path)

    def _entry(self, node: str) -> Entry:
        try:
            return self._entries[node]
        except KeyError:
            raise UnsupportedError(
                f"the graph has no node {node!r} that can be read", where=str(self.path)
            ) from None


def resize(model: OnnxModel, shapes: Mapping[str, tuple[int, ...]]) -> OnnxModel:
    """The model whose inputs have ``shapes``, by name; nothing is written.

    The sizes of other values are forgotten and inferred again. A size that is a constant of the
    graph, such as that of a Reshape, stays: whether the model still runs shows when it is run.
    """
    document = model.document
    real = {value.name for value in real_inputs(document)}
    rest = GraphProto()
    rest.CopyFrom(document.rest)
    del rest.value_info[:]
    for value in rest.input:
        if value.name in real & shapes.keys():
            _set_shape(value, shapes[value.name])
    for value in rest.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return replace(
        model,
        document=replace(document, rest=rest),
        options=replace(model.options, input_shapes=dict(shapes)),
    )


def _set_shape(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = [TensorShapeProto.Dimension(dim_value=size) for size in shape]
    value.type.tensor_type.shape.CopyFrom(TensorShapeProto(dim=dims))
