"""The values that flow through dacconv: plain data without framework objects.

Shapes follow PyTorch and ONNX: activations are ``(batch, channels, *spatial)``, kernels are
``(out, in / groups, *kernel)``. One multiply-add is one MAC; FLOPs are 2 x MACs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dacconv.graph.precision import Precision

Array = NDArray[Any]
FloatArray = NDArray[np.floating[Any]]
Shape = tuple[int | None, ...]
"""A shape; ``None`` is an axis whose size the model does not fix."""

Op = Literal[
    "conv",
    "conv_transpose",
    "linear",
    "affine",
    "add",
    "concat",
    "pool",
    "pad",
    "fill",
    "transpose",
    "reshape",
    "identity",
    "other",
]
"""The kind of operation of a node; see :class:`Node` for the meaning of each."""

LAYER_OPS: tuple[Op, ...] = ("conv", "conv_transpose", "linear")
"""The layers: the operators that carry the multiply-adds of a convolutional network."""

AutoPad = Literal["SAME_UPPER", "SAME_LOWER"]
Rank = tuple[int, ...]
"""The ranks of a split, one for each rank letter of the method's formula."""


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """One convolution as a value, with 1, 2 or 3 spatial axes (0 for a linear layer).

    ``weight`` is ``(out, in / groups, *kernel)`` always: for a transposed convolution too
    (frameworks store ``(in, out / groups, *kernel)``; ``graph.convs.swap_channels``
    converts either way), and ``(out, in)`` for a linear layer, which acts on the last axis of
    its input and has empty ``stride``, ``padding`` and ``dilation``.

    ``padding`` holds ``(begin, end)`` per spatial axis, because ONNX pads can be lopsided.
    With ``auto_pad`` the runtime computes the padding from the input size, and ``padding``
    is the result where the size is known, zeros otherwise. ``pad_mode`` is how the
    border is filled: ``zeros``, or torch's ``reflect``, ``replicate``, ``circular``.

    With ``transposed`` it is a transposed convolution: ``padding`` is cropped from the full
    output, and ``output_padding`` is added to its end, per spatial axis.
    """

    weight: FloatArray
    bias: FloatArray | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    auto_pad: AutoPad | None = None
    pad_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        """The number of input channels, over all groups."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        """The spatial size of the kernel."""
        return tuple(int(k) for k in self.weight.shape[2:])


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeat the channels of a value: ``(batch, c, *size)`` to ``(batch, copies * c, *size)``.

    As ``numpy.tile`` does, or with ``interleaved`` as ``numpy.repeat``. ``axes`` is the number of
    spatial axes.
    """

    copies: int
    axes: int
    interleaved: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Parallel:
    """Convs that read the same value; their outputs are concatenated along the channels."""

    convs: tuple[Conv, ...]


Step = Conv | Repeat | Parallel
Chain = tuple[Step, ...]
"""Consecutive steps."""
Branches = tuple[Chain, ...]
"""A sum of chains that read the same value."""


def convs_of(branches: Branches) -> Iterator[Conv]:
    """Every conv of a sum of chains."""
    for chain in branches:
        for step in chain:
            if isinstance(step, Parallel):
                yield from step.convs
            elif isinstance(step, Conv):
                yield step


Construct = Literal["sum", "parallel", "repeat", "interleave"]
"""A construct besides a chain of convs that a format may support: a sum of several chains,
:class:`Parallel`, and the two kinds of :class:`Repeat`."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``y = scale * x + shift`` per channel: what a BatchNorm is at inference.

    ``scale`` and ``shift`` are float64 arrays of shape ``(channels,)``, or of shape ``()``
    for a scalar.
    """

    scale: FloatArray
    shift: FloatArray


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of a conv, transposed conv or linear layer, without its weights.

    ``input_size`` and ``output_size`` are spatial sizes: ``()`` for a linear layer, None where
    the model does not fix them. ``batch`` is 0 where a run of the model does not reach the layer,
    which then costs nothing. ``itemsize`` is the number of bytes of one value. ``known`` is
    False where the file does not tell ``stride``, ``dilation`` and ``groups``, which are then 1.
    ``transposed``: a transposed conv, which multiplies at each position of its input and not of
    its output.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    input_size: tuple[int, ...] | None
    output_size: tuple[int, ...] | None
    batch: int = 1
    itemsize: int = 4
    known: bool = True
    transposed: bool = False

    def of(self, conv: Conv) -> Geometry:
        """The geometry of ``conv`` in the place of this layer: other channels, the same sizes."""
        return replace(
            self,
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel=conv.kernel,
            stride=conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            transposed=conv.transposed,
        )


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of a graph, in order of execution.

    ``name`` is unique in the graph. ``output`` is the first value that it computes; ``shape``
    the shape of that value. ``kind`` is the format's own operator name, for messages.
    ``precision`` is the precision that the weight of a layer is stored in, where that is not the
    one that it is computed in (``int8`` behind DequantizeLinear, ``fp16`` behind a Cast).
    ``weight`` identifies the constant that a conv or linear layer multiplies with: nodes
    with the same ``weight`` share it (for a torch module that is called twice, both calls).
    ``geometry`` is set for conv, conv_transpose and linear. ``skip`` is the reason why this
    node must not be rewritten; None where it may be.

    ``inputs`` are the values that come from other nodes or from outside, without the constants
    (weights, paddings, axes); a node with subgraphs also lists what those read from around it.

    The meaning of each op, and its ``attrs``:

    - ``conv``, ``conv_transpose``, ``linear``: ``attrs["module"]``, where there is one, is the
      module that the node is a call of: nodes of one module are rewritten together or not at all.
    - ``affine``: ``inputs[0]`` scaled and shifted by constants, per channel of the axis
      ``attrs["axis"]`` (default 1; negative counts from the end; of no meaning for scalars):
      BatchNorm at inference, and Add, Sub, Mul, Div, Neg with a constant. It does not widen
      its input by broadcasting. A BatchNorm in training mode has ``skip`` set.
    - ``add``: the sum of its ``inputs`` (Add, Sub, Sum, and torch's ``alpha``), each times
      its entry of ``attrs["coefficients"]`` (default all 1).
    - ``concat``: its ``inputs`` joined along ``attrs["axis"]`` (default 1).
    - ``pool``: any pooling. ``attrs["kind"]`` is ``"average"`` or something else; an average
      pool has ``kernel``, ``stride``, ``padding`` (begin and end per axis), ``dilation``,
      ``ceil_mode``, ``count_include_pad``, and ``auto_pad`` where the format has it.
      Global pooling is of another kind.
    - ``pad``: ``attrs["pads"]`` is (begin, end) per axis of the value, ``attrs["mode"]`` is
      ``"constant"`` or something else, ``attrs["value"]`` the constant: a float, or one per
      channel as an array (the border that a padded BatchNorm has).
    - ``fill``: ``inputs[0]`` with the slice ``attrs["begin"]`` to ``attrs["end"]`` of the axis
      ``attrs["axis"]`` overwritten by the constant ``attrs["value"]``: a float, or one per
      channel as an array. ``begin`` and ``end`` are as in a Python slice.
    - ``transpose``: ``attrs["perm"]`` as numpy has it.
    - ``reshape``: ``inputs[0]`` with other leading axes, the last one as it was;
      ``attrs["ranks"]`` is the number of axes before and after.
    - ``identity``: ``inputs[0]`` unchanged at inference (Identity, Dropout, a Cast to the
      type that the value has already).
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    output: str
    shape: Shape | None = None
    kind: str = ""
    weight: str | None = None
    geometry: Geometry | None = None
    skip: str | None = None
    params: int = 0
    attrs: Mapping[str, Any] = field(default_factory=dict)
    precision: str = ""


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """An input or output of a model: its name, shape and numpy dtype name."""

    name: str
    shape: Shape | None
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes of a model in order of execution, its inputs and its outputs.

    ``fixed`` means that the file fixes the sizes of its inputs, except the batch, so that the
    shapes of the nodes hold for every run and not only for one input size. ``order`` is the order
    of the nodes. ``notes`` are facts for the report, such as parts of the file that could not be
    read.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[str, ...]
    order: Literal["execution", "registration", "file"] = "execution"
    notes: tuple[str, ...] = ()
    fixed: bool = False

    def node(self, name: str) -> Node:
        """The node of that name; KeyError where there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight and the places where it is used: a row of every table.

    ``sites`` are the names of the nodes that share the weight, in order of execution;
    ``geometries`` has one entry per site, or none where the model does not fix the sizes. ``skip``
    is None for an eligible layer, or the reason why it is not; ``params`` is the number of
    parameters of a layer without geometry. ``precision`` is that of :class:`Node`.
    """

    name: str
    op: Op
    sites: tuple[str, ...]
    geometries: tuple[Geometry, ...]
    skip: str | None = None
    params: int = 0
    precision: str = ""

    @property
    def geometry(self) -> Geometry:
        """The geometry of the first site; IndexError for a layer that has none."""
        return self.geometries[0]


@dataclass(frozen=True, slots=True)
class Choice:
    """An instruction to split a layer: the method, the rank and the form.

    ``rank`` has one number for each rank letter of the method's formula. The form ``auto`` is
    replaced when a plan is made; a method without forms keeps it.
    """

    layer: str
    method: str
    rank: Rank
    note: str = ""
    form: str = "auto"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A layer that is not split, and the reason."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The instructions for all layers: a value that can be printed, edited and read again.

    ``precision`` is None where every layer keeps the precision that it has.
    """

    choices: tuple[Choice, ...]
    skipped: tuple[Skipped, ...] = ()
    precision: Precision | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rewrite:
    """The only kind of edit: a sum of chains of convs replaces a node.

    The chains ``branches`` read the value ``source`` and replace the node ``target``. The output
    value of ``target`` keeps its name; the nodes in ``drop`` (``target`` is among them, or
    implied) are removed. An array object that occurs in several rewrites is stored once, so a
    shared weight stays shared.

    ``alias`` maps the value of a removed node to the value that its readers get instead: if
    conv -> Transpose -> BatchNorm loses its BatchNorm, the readers of the BatchNorm read
    the Transpose. A fusion has one conv, of the op of ``target`` or of the conv in ``drop``
    (a linear layer stays linear, see ``Conv.weight``; ``Conv.transposed`` a transposed conv).

    ``own_layers`` allows layers of ``dacconv.nn`` in a torch module, where torch.nn has none.
    """

    target: str
    source: str
    branches: Branches
    drop: tuple[str, ...] = ()
    reason: str = ""
    alias: Mapping[str, str] = field(default_factory=dict)
    own_layers: bool = False

    @property
    def merged(self) -> Conv:
        """The conv that a fusion puts in the place of its target.

        Raises:
            TypeError: the edit is not a fusion.
        """
        ((step,),) = self.branches
        if not isinstance(step, Conv):
            raise TypeError(f"the edit of {self.target} is not a fusion")
        return step


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that was not changed, and the reason."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a converted model; written into the model and into the report."""

    version: str
    sha256: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
