"""The weights of a model in its files: which tensor is the kernel of which layer.

A kernel is recognised by its bytes, which works for every format. A tensor that no layer multiplies
with, or that reaches its layer changed, is not rounded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dacconv.calibration.inputs.families import Inputs
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Model, Walkable
from dacconv.formats.spans import ModelFile, Span
from dacconv.graph.patches import as_images, patches
from dacconv.graph.types import Array, Conv, FloatArray
from dacconv.packing.entropy import Buffer
from dacconv.packing.levels import dtype_of
from dacconv.packing.rounding import F64, Metric, metric_of
from dacconv.support.progress import Progress

FEWEST_NUMBERS = 64
"""A kernel of fewer numbers is left as it is: it would take more room than it saves."""
MOST_NUMBERS = 5000
"""The most numbers of a patch for which second moments are computed."""
LEAST_GAIN = 1e-3
"""The smallest gain of a channel, over the largest of its layer."""
_MOST_AFFINES = 12
ROWS_PER_NUMBER, FEWEST_ROWS = 6, 8192
"""The positions that second moments are computed from."""

Place = tuple[int, int]
"""The number of a file and the start of a span in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A kernel in a file, and the layers that multiply with it.

    ``kernel`` is ``(out, n)``. With ``swapped`` the file holds its transpose. ``places`` are all
    spans with these bytes. ``gains`` are what later layers multiply each output channel with.
    """

    name: str
    places: tuple[Place, ...]
    span: Span
    kernel: F64
    swapped: bool
    nodes: tuple[str, ...]
    gains: F64
    metric: Metric | None = None


def find_weights(
    model: Model, files: Sequence[ModelFile], contents: Sequence[Buffer]
) -> tuple[list[Weight], list[str]]:
    """The kernels that can be rounded, in order of execution; and why others cannot.

    Raises:
        UnsupportedError: there are none.
    """
    spans: dict[bytes, list[tuple[Place, Span]]] = {}
    for number, (file, data) in enumerate(zip(files, contents, strict=True)):
        view = memoryview(data)
        for span in file.spans:
            if span.shape is not None and len(span.shape) > 1 and span.count >= FEWEST_NUMBERS:
                digest = hashlib.sha256(view[span.start : span.end]).digest()
                spans.setdefault(digest, []).append(((number, span.start), span))
    nodes: dict[bytes, list[str]] = {}
    first: dict[bytes, tuple[Conv, bool]] = {}
    notes: list[str] = []
    dtypes = sorted({span.dtype for matches in spans.values() for _, span in matches})
    for name, conv in _convs(model):
        match = next((form for form in _forms(conv, dtypes) if form[0] in spans), None)
        if conv.weight.size < FEWEST_NUMBERS:
            continue
        if not np.isfinite(conv.weight.astype(np.float64)).all():
            notes.append(f"{name}: its weight has numbers that are NaN or infinite")
        elif match is None:
            notes.append(f"{name}: its weight is not in the file as it is used")
        else:
            nodes.setdefault(match[0], []).append(name)
            first.setdefault(match[0], (conv, match[1]))
    if not first:
        raise UnsupportedError(
            "no layer was found whose weight can be rounded",
            where=str(model.path),
            hint="--lossless packs any model; a model that is quantised already is small",
        )
    return [
        Weight(
            name=nodes[digest][0],
            places=tuple(place for place, _ in spans[digest]),
            span=spans[digest][0][1],
            kernel=_kernel(conv),
            swapped=swapped,
            nodes=tuple(nodes[digest]),
            gains=_gains(model, nodes[digest], conv),
        )
        for digest, (conv, swapped) in first.items()
    ], notes


def with_metrics(
    model: Model, weights: Sequence[Weight], inputs: Inputs, progress: Progress
) -> list[Weight]:
    """The weights with what errors do to their layers' outputs, where that can be measured.

    Convs whose patches are not too wide can be measured; the inputs are those of the original.

    Raises:
        UnsupportedError: the model cannot be run layer by layer.
    """
    if not isinstance(model, Walkable):
        raise UnsupportedError("a model of this format cannot be run layer by layer")
    owner = {name: i for i, weight in enumerate(weights) for name in weight.nodes}
    kinds = {node.name: node.op for node in model.graph().nodes}
    convs = {
        name: conv
        for name in owner
        if kinds[name] == "conv" and (conv := model.conv(name)).weight[0].size <= MOST_NUMBERS
    }
    sums: dict[int, F64] = {}
    metrics: dict[int, Metric] = {}
    left = {i: sum(name in convs for name in weight.nodes) for i, weight in enumerate(weights)}

    def visit(node: str, xs: Sequence[Array]) -> list[Array]:
        progress("measuring layers", len(metrics), len(weights))
        which = owner[node]
        outputs, second = _through(convs[node], xs)
        sums[which] = sums[which] + second if which in sums else second
        left[which] -= 1
        if not left[which]:  # every layer with this weight has been seen
            merged = weights[which].kernel * weights[which].gains[:, None]
            metric = metric_of(sums.pop(which), merged)
            if metric is not None:
                metrics[which] = metric
        return outputs

    model.walk(list(convs), visit, (*inputs.fitted, *inputs.held))
    progress("measuring layers", len(weights), len(weights))
    return [replace(weight, metric=metrics.get(i)) for i, weight in enumerate(weights)]


def _convs(model: Model) -> Iterator[tuple[str, Conv]]:
    for node in model.graph().nodes:
        if node.op in ("conv", "conv_transpose", "linear"):
            try:
                yield node.name, model.conv(node.name)
            except UnsupportedError:
                continue


def _forms(conv: Conv, dtypes: Sequence[str]) -> Iterator[tuple[bytes, bool]]:
    """The digests of a kernel as files may hold it, and whether that is its transpose.

    Some formats give a kernel of half floats in float32, so the other dtypes are tried as well.
    """
    stored = _stored_array(conv)
    for dtype in dtypes:
        with np.errstate(over="ignore", invalid="ignore"):
            array = stored.astype(dtype_of(dtype))
        if np.array_equal(array.astype(np.float64), stored.astype(np.float64)):
            yield hashlib.sha256(array.tobytes()).digest(), False
            if array.ndim == 2:
                yield hashlib.sha256(array.T.tobytes()).digest(), True


def _stored_array(conv: Conv) -> Array:
    """The kernel as frameworks store it: of a transposed conv inputs come first."""
    if not conv.transposed:
        return conv.weight
    from dacconv.graph.convs import swap_channels

    return swap_channels(conv.weight, conv.groups)


def _kernel(conv: Conv) -> F64:
    stored = _stored_array(conv)
    return stored.reshape(len(stored), -1).astype(np.float64)


def _gains(model: Model, names: Sequence[str], conv: Conv) -> F64:
    """What each output channel is multiplied with right behind a conv, as by a BatchNorm.

    Ones where anything else reads the conv, or several layers have the same weight.
    """
    gains = np.ones(len(_stored_array(conv)))
    if len(names) != 1 or conv.transposed:
        return gains
    nodes = model.graph().nodes
    value = next(node.output for node in nodes if node.name == names[0])
    for _ in range(_MOST_AFFINES):
        readers = [node for node in nodes if value in node.inputs]
        if len(readers) != 1 or readers[0].op not in ("affine", "identity", "transpose"):
            break
        if readers[0].op == "affine":
            try:
                scale = np.abs(model.affine(readers[0].name).scale).ravel()
            except UnsupportedError:
                break
            if scale.size not in (1, gains.size) or not np.isfinite(scale).all():
                break
            gains = gains * scale
        value = readers[0].output
    if not gains.any():
        return np.ones_like(gains)
    return np.maximum(gains, LEAST_GAIN * float(gains.max()))


def _through(conv: Conv, xs: Sequence[Array]) -> tuple[list[FloatArray], F64]:
    """The outputs of a conv for every batch, and the second moments ``(groups, n, n)``."""
    groups, n = conv.groups, conv.weight[0].size
    kernel = conv.weight.reshape(groups, -1, n).astype(np.float32).transpose(0, 2, 1)
    bias = 0.0 if conv.bias is None else np.asarray(conv.bias, np.float32)
    positions = sum(len(x) * math.prod(x.shape[2:]) for x in xs) / max(math.prod(conv.stride), 1)
    share = min(1.0, max(FEWEST_ROWS, ROWS_PER_NUMBER * n) / max(positions, 1))
    second, count = np.zeros((groups, n, n)), 0
    rng = np.random.default_rng(0)
    outputs = []
    for x in xs:
        parts = []
        for part, size, rows in patches(conv, x):
            grouped = rows.reshape(len(rows), groups, n).transpose(1, 0, 2)
            y = np.concatenate(np.matmul(grouped, kernel), axis=1) + bias
            parts.append(as_images(y, part.stop - part.start, size))
            if share < 1:
                taken = rng.choice(len(rows), max(1, math.ceil(share * len(rows))), replace=False)
                grouped = grouped[:, np.sort(taken)]
            second += np.matmul(grouped.transpose(0, 2, 1), grouped)
            count += grouped.shape[1]
        outputs.append(np.concatenate(parts))
    return outputs, second / max(count, 1)
