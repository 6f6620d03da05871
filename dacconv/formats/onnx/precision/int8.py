"""Int8 by ONNX Runtime's static quantiser (QDQ), with ranges that are measured once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto

from dacconv.errors import UnsupportedError
from dacconv.formats.base import Feeds, Int8Recipe, Model, Runner
from dacconv.formats.onnx.document import unique
from dacconv.formats.onnx.inputs import declared_specs
from dacconv.formats.onnx.load import document_of
from dacconv.formats.onnx.precision.prepare import CARRIERS, LAYERS, Prepared, prepared
from dacconv.formats.onnx.precision.ranges import Histogram, all_ranges, observe
from dacconv.formats.onnx.run import runner, session
from dacconv.graph.types import FloatArray

if TYPE_CHECKING:
    from dacconv.formats.onnx.model import OnnxModel

SUMS = ["Gemm", "MatMul"]
"""Layers whose result stays in floating point: ONNX Runtime has int8 kernels that give it."""


@dataclass(frozen=True, slots=True, eq=False)
class OnnxQuantiser:
    """An ONNX model with the ranges of its activations; see ``formats.base.Quantiser``."""

    model: OnnxModel
    prepared: Prepared
    histograms: Mapping[str, Histogram]
    means: Mapping[str, FloatArray]

    @property
    def layers(self) -> frozenset[str]:
        """The layer nodes that can be int8."""
        return self.prepared.layers

    @property
    def reasons(self) -> Mapping[str, str]:
        """The layer nodes that cannot be int8, with the reason for each."""
        return self.prepared.reasons

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts for the reader of a report."""
        return self.prepared.notes

    def quantised(self, recipe: Int8Recipe) -> OnnxModel:
        """The model with its layers in int8, except those that the recipe keeps."""
        nodes = self.prepared.int8_nodes(recipe.kept)
        if not nodes:
            return self.model
        ranges = all_ranges(self.histograms, recipe.ranges, symmetric=recipe.activations == "int8")
        proto = ModelProto()
        proto.CopyFrom(self.prepared.proto)
        _keep_weights(proto, self.layers & recipe.kept, self.layers - recipe.kept)
        if recipe.correct_bias:
            from dacconv.formats.onnx.precision.bias import with_corrected_biases

            layers = self.layers - recipe.kept
            with_corrected_biases(proto, layers, self.means, 7 if recipe.reduce_range else 8)
        proto = _quantised(proto, nodes, ranges, recipe)
        return type(self.model)(
            self.model.path,
            document_of(memoryview(proto.SerializeToString()), self.model.path),
            self.model.options,
        )

    def runner_as_written(self, model: Model) -> Runner:
        """A function that runs a quantised model without ONNX Runtime's optimiser."""
        if not isinstance(model, type(self.model)):
            raise TypeError("not an ONNX model")
        return runner(model.session(optimise=False))


def quantiser(
    model: OnnxModel, batches: Sequence[Feeds], *, threads: int | None = None
) -> OnnxQuantiser:
    """Measure the ranges of a model's activations on some inputs.

    Raises:
        UnsupportedError: the model cannot be quantised; the message says why.
    """
    ready = prepared(model.document, model.constants, model.inferred)
    if not ready.layers:
        reason = next(iter(ready.reasons.values()), "it has no conv and no linear layer")
        raise UnsupportedError(f"no layer can be int8: {reason}", where=str(model.path))
    names = _activations(ready)
    shown = ModelProto()
    shown.CopyFrom(ready.proto)
    outputs = {value.name for value in shown.graph.output}
    shown.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in outputs)
    fed = {value.name for value in shown.graph.input}
    run = runner(session(shown.SerializeToString(), threads=threads))

    def run_all(feeds: Feeds) -> dict[str, Any]:
        return {**run(feeds), **{name: feeds[name] for name in names if name in fed}}

    free = all(
        spec.shape is not None and bool(spec.shape) and spec.shape[0] is None
        for spec in declared_specs(model.document)
    )
    histograms, means = observe(run_all, names, batches, divisible=free)
    return OnnxQuantiser(model, ready, histograms, means)


def _activations(ready: Prepared) -> list[str]:
    """The values that may be quantised: what the nodes that can be int8 read and compute."""
    graph = ready.proto.graph
    chosen = set(ready.int8_nodes(()))
    constants = {tensor.name for tensor in graph.initializer}
    floats = {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    names: dict[str, None] = {}
    for node in graph.node:
        if node.name in chosen:
            names.update(dict.fromkeys((*node.input, *node.output)))
    return [name for name in names if name in floats and name not in constants]


def _quantised(
    proto: ModelProto,
    nodes: list[str],
    ranges: Mapping[str, tuple[float, float]],
    recipe: Int8Recipe,
) -> ModelProto:
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    except ImportError as error:
        raise UnsupportedError(
            f"int8 needs onnxruntime.quantization: {error}", hint="pip install onnxruntime"
        ) from error
    symmetric = recipe.activations == "int8"
    limits = {
        name: (np.array(low, np.float32), np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    header, values = _identity_of(proto), list(proto.graph.value_info)
    with _quiet():
        result: ModelProto = QDQQuantizer(
            proto,
            True,
            recipe.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if symmetric else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, limits),
            nodes,
            [],
            sorted(LAYERS | CARRIERS),
            {
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": SUMS,
            },
        ).quantize_model()
    result.producer_name, result.producer_version = header
    del result.graph.value_info[:]
    written = {name for node in result.graph.node for name in node.output}
    result.graph.value_info.extend(value for value in values if value.name in written)
    return result


def _keep_weights(proto: ModelProto, kept: frozenset[str], lowered: frozenset[str]) -> None:
    """Give the layers that stay in fp32 copies of the weights that int8 layers read as well."""
    shared = {node.input[1] for node in proto.graph.node if node.name in lowered}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    names = set(tensors) | {name for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.name in kept and node.input[1] in shared:
            copy = TensorProto()
            copy.CopyFrom(tensors[node.input[1]])
            copy.name = unique(f"{node.input[1]}_fp32", names)
            proto.graph.initializer.append(copy)
            node.input[1] = copy.name


def _identity_of(proto: ModelProto) -> tuple[str, str]:
    return proto.producer_name, proto.producer_version


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's messages, which speak of its own options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
