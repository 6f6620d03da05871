"""The ONNX adapter: an opened ONNX file behind the model protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from dacconv.errors import UnsupportedError
from dacconv.models.base import LoadOptions, Runner
from dacconv.models.onnx_affine import batch_norm, loose_affine, loose_operands
from dacconv.models.onnx_consts import Constants
from dacconv.models.onnx_document import Document, Entry
from dacconv.models.onnx_geometry import conv_attributes, spatial
from dacconv.models.onnx_graph import GraphReader, refuse_quantised
from dacconv.models.onnx_inputs import input_specs
from dacconv.models.onnx_load import read
from dacconv.models.onnx_operators import CannotEvaluate
from dacconv.models.onnx_rewrite import rewrite
from dacconv.models.onnx_run import document_session, runner
from dacconv.models.onnx_save import needs_side_file, save, side_path
from dacconv.models.onnx_shapes import Inferred, infer
from dacconv.types import Affine, Array, Conv, Graph, Plan, Rewrite, ValueSpec


def load(path: Path, options: LoadOptions) -> OnnxModel:
    """Open an ONNX file without running anything in it.

    Raises:
        FormatError: the file cannot be read or is damaged.
        UnsupportedError: it is too old, or quantised through and through.
        UsageError: ``options.input_shapes`` contradict the model.
    """
    document = read(path)
    model = OnnxModel(path, document, options)
    refuse_quantised(document, model.constants, str(path))
    model.inputs()
    return model


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """An ONNX model. Immutable; what is worked out about it is kept."""

    path: Path
    document: Document
    options: LoadOptions

    @property
    def format(self) -> str:
        """Always ``onnx``."""
        return "onnx"

    @property
    def files(self) -> tuple[Path, ...]:
        """The ONNX file and its external data."""
        return (self.path, *self.document.beside)

    @property
    def runtime(self) -> str:
        """The onnxruntime that runs it."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def runnable(self) -> str | None:
        """None: only the runtime itself can tell, when it is asked."""
        return None

    @cached_property
    def constants(self) -> Constants:
        """The constants of the graph."""
        return Constants(self.document)

    @cached_property
    def _inputs(self) -> tuple[ValueSpec, ...]:
        return input_specs(self.document, self.options.input_shapes)

    @cached_property
    def inferred(self) -> Inferred:
        """The shapes of the values, with the user's input shapes applied."""
        return infer(self.document, self.constants, self._inputs)

    @cached_property
    def _graph(self) -> Graph:
        return GraphReader(self.document, self.constants, self.inferred).graph(self._inputs)

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.document.entries}

    def graph(self) -> Graph:
        """The dataflow, nodes in the order of the file."""
        return self._graph

    def inputs(self) -> tuple[ValueSpec, ...]:
        """What the runner takes; an initializer that is also an input is not among them."""
        return self._inputs

    def conv(self, node: str) -> Conv:
        """The conv at ``node``, its weight in its own dtype.

        Raises:
            UnsupportedError: the node is no conv, or its weight cannot be read.
        """
        entry = self._entry(node)
        if entry.op != "Conv":
            raise UnsupportedError(f"{node} is a {entry.op}, not a Conv", where=str(self.path))
        names = entry.proto.input
        weight = self._value(node, names[1])
        data = self.inferred.shapes.get(names[0]) if self._auto_pads(entry) else None
        attributes = conv_attributes(entry, weight.shape, spatial(data, weight.ndim - 2))
        if attributes.fault:
            raise UnsupportedError(f"{node}: {attributes.fault}", where=str(self.path))
        return Conv(
            weight=weight,
            bias=self._value(node, names[2]) if len(names) > 2 and names[2] else None,
            stride=attributes.stride,
            padding=attributes.padding,
            dilation=attributes.dilation,
            groups=attributes.groups,
            auto_pad=attributes.auto_pad,
        )

    def affine(self, node: str) -> Affine:
        """The scale and shift at ``node``, folded in float64.

        Raises:
            UnsupportedError: the node is not affine per channel.
        """
        entry = self._entry(node)
        try:
            if entry.op == "BatchNormalization":
                return batch_norm(entry, self.constants)
            operands = loose_operands(entry, self.constants, self.inferred)
            if operands is not None:
                return loose_affine(entry, self.constants, operands)
        except CannotEvaluate as error:
            raise UnsupportedError(f"{node}: {error}", where=str(self.path)) from error
        raise UnsupportedError(
            f"{node} ({entry.op}) is not affine per channel", where=str(self.path)
        )

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with the edits applied; unchanged weights are shared, not copied."""
        document = rewrite(self.document, self.constants, self.inferred, edits)
        return type(self)(self.path, document, self.options)

    def session(self, *, threads: int | None = None, optimise: bool = True) -> Any:
        """An ONNX Runtime session; ``optimise=False`` runs the graph as it is written."""
        return document_session(self.document, threads=threads, optimise=optimise)

    def runner(self, *, threads: int | None = None) -> Runner:
        """A function that runs the model in ONNX Runtime."""
        return runner(self.session(threads=threads))

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write ONNX, with external data where the original had that."""
        return save(self.document, path, provenance, plan)

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The external data file, where there is one."""
        return (side_path(path),) if needs_side_file(self.document) else ()

    def _entry(self, node: str) -> Entry:
        try:
            return self._entries[node]
        except KeyError:
            raise UnsupportedError(
                f"the graph has no node {node!r} that can be read", where=str(self.path)
            ) from None

    def _auto_pads(self, entry: Entry) -> bool:
        return any(a.name == "auto_pad" and a.s.startswith(b"SAME") for a in entry.proto.attribute)

    def _value(self, node: str, name: str) -> Array:
        try:
            return self.constants.value(name)
        except CannotEvaluate as error:
            raise UnsupportedError(f"{node}: {error}", where=str(self.path)) from error
