"""What the calls of an exported program are: their ops, and the values of convs and affines."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from dacconv.formats.torch.convs import batchnorm_affine, linear_value, to_numpy, weight_problem
from dacconv.formats.torch.meaning import Meaning
from dacconv.formats.torch.module.arithmetic import arithmetic_affine
from dacconv.formats.torch.module.functions import per_axis
from dacconv.formats.torch.program.flow import fill_of
from dacconv.formats.torch.program.ops import (
    NORMS,
    arithmetic,
    bind,
    conv_geometry,
    conv_kind,
    conv_padding,
    describe,
    is_constant_number,
    matrix_geometry,
    op_name,
)
from dacconv.graph.convs import swap_channels
from dacconv.graph.types import Affine, Conv, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """Reads single calls.

    ``constants`` are the tensors of the nodes that are constants, ``values`` the names of the
    values that the other nodes hold so far; ``shape`` gives the shape of a node's value.
    """

    constants: Mapping[fx.Node, torch.Tensor]
    values: Mapping[fx.Node, str]
    shape: Callable[[fx.Node], Shape | None]

    def meaning(self, node: fx.Node) -> tuple[Meaning, fx.Node | None]:
        """What a call is, and the node of the weight that it multiplies with, if it has one."""
        name = op_name(node)
        if node in self.constants or not isinstance(node.target, torch._ops.OpOverload):
            return Meaning(), None  # arithmetic on sizes has names that operators have too
        if (fill := fill_of(node, self.constants)) is not None and fill.base in self.values:
            place = {"axis": fill.axis, "begin": fill.begin, "end": fill.end}
            return Meaning("fill", {**place, "value": to_numpy(fill.value)}), None
        if (kind := conv_kind(node)) is not None:
            weight = bind(node)["weight"]
            val = weight.meta["val"]
            geometry = conv_geometry(node, val, self.shape)
            return Meaning(kind[0], {}, geometry, self._why_not_conv(node, weight)), weight
        if (matrix := self._matrix(node)) is not None:
            weight, shape, bias = matrix
            size = weight.meta["val"].element_size()
            geometry = matrix_geometry(shape, bias, self.shape(node), size)
            skip = None if name == "linear" else f"spelled as {name}"
            skip = skip or self._why_not_constant(weight)
            return Meaning("linear", {}, geometry, skip), weight
        if name in NORMS:
            return self._norm(node), None
        if (axis := self._affine_axis(node)) is not None:
            return Meaning("affine", {"axis": axis}), None
        if any(n in self.constants for n in node.all_input_nodes):
            return Meaning(), None
        op, attrs = describe(node, self.shape)
        return Meaning(op, attrs), None

    def _why_not_conv(self, node: fx.Node, weight: fx.Node) -> str | None:
        bias = bind(node).get("bias")
        if isinstance(bias, fx.Node) and bias not in self.constants:
            return "its bias is computed while the model runs"
        return self._why_not_constant(weight) or weight_problem(self.constants[weight])

    def _why_not_constant(self, part: fx.Node) -> str | None:
        what = "weight"
        if part not in self.constants:
            return f"its {what} is computed while the model runs"
        for user in part.users:
            slots = [k for k, v in bind(user).items() if v is part] if user.op != "output" else []
            plain = conv_kind(user) is not None or op_name(user) == "linear"
            if not plain or slots != [what]:
                reader = "the output" if user.op == "output" else op_name(user)
                return f"its {what} is also read by {reader}"
        return None

    def _matrix(self, node: fx.Node) -> tuple[fx.Node, tuple[int, ...], bool] | None:
        """``(weight, (out, in), bias)`` of a product with a constant matrix."""
        name, call = op_name(node), bind(node)
        if name == "linear":
            weight = call["weight"]
            shape = tuple(int(s) for s in weight.meta["val"].shape)
            return (weight, shape, call["bias"] is not None) if len(shape) == 2 else None
        if name not in ("addmm", "mm", "matmul"):
            return None
        second = call["other"] if name == "matmul" else call["mat2"]
        while isinstance(second, fx.Node) and op_name(second) in ("t", "permute", "transpose"):
            second = second.args[0]
        if not isinstance(second, fx.Node) or second not in self.constants:
            return None
        matrix = call["other"] if name == "matmul" else call["mat2"]
        if matrix.meta["val"].ndim != 2:
            return None
        rows, columns = (int(s) for s in matrix.meta["val"].shape)
        return second, (columns, rows), name == "addmm"

    def _norm(self, node: fx.Node) -> Meaning:
        call = bind(node)
        skip = None
        if call.get("training"):
            skip = "a BatchNorm in training mode: what it does depends on the batch"
        parts = [call[key] for key in ("weight", "bias", "running_mean", "running_var")]
        present = [part for part in parts if part is not None]
        if skip is None and not (parts[2] in self.constants and parts[3] in self.constants):
            return Meaning()
        if skip is None and any(part not in self.constants for part in present):
            return Meaning()
        extra = [u for u in node.users if u.target is operator.getitem and u.args[1] != 0]
        if skip is None and any(u.users for u in extra):
            skip = "its statistics are read as well"
        return Meaning("affine", {"axis": 1}, skip=skip)

    def _affine_axis(self, node: fx.Node) -> int | None:
        """The axis of arithmetic with constants, per channel or scalar; None for other calls."""
        kind = arithmetic(node)
        result = node.meta.get("val")
        if kind is None or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return None
        call = bind(node)
        if call.get("rounding_mode") or not is_constant_number(call.get("alpha", 1)):
            return None
        sides = [call["self"]] if kind == "neg" else [call["self"], call["other"]]
        values = [s for s in sides if isinstance(s, fx.Node) and s in self.values]
        if len(values) != 1 or (kind == "div" and sides[0] is not values[0]):
            return None
        source = values[0].meta.get("val")
        if not isinstance(source, torch.Tensor) or source.dtype != result.dtype:
            return None
        if self.shape(values[0]) != self.shape(node):
            return None
        other = next((s for s in sides if s is not values[0]), 1)
        if is_constant_number(other):
            return 1
        if not isinstance(other, fx.Node) or other not in self.constants:
            return None
        constant = self.constants[other]
        shape = (1,) * (result.ndim - constant.ndim) + tuple(constant.shape)
        wide = [axis for axis, size in enumerate(shape) if size != 1]
        return None if len(wide) > 1 or len(shape) > result.ndim else next(iter(wide), 1)

    def conv(self, node: fx.Node, weight: fx.Node) -> Conv:
        """The conv or linear layer of a call whose weight is a constant."""
        call, tensor = bind(node), self.constants[weight]
        addend = call.get("bias", call.get("self") if op_name(node) == "addmm" else None)
        bias = self.constants.get(addend) if isinstance(addend, fx.Node) else None
        kind = conv_kind(node)
        if kind is None:
            turned = tensor.T if tuple(tensor.shape) != self._matrix_shape(node) else tensor
            return linear_value(turned, bias)
        op, axes = kind
        transposed = op == "conv_transpose"
        stored = to_numpy(tensor)
        kernel = tuple(int(k) for k in tensor.shape[2:])
        return Conv(
            weight=swap_channels(stored, int(call["groups"])) if transposed else stored,
            bias=None if bias is None else to_numpy(bias),
            stride=per_axis(call["stride"], axes),
            padding=conv_padding(call, kernel, axes),
            dilation=per_axis(call["dilation"], axes),
            groups=int(call["groups"]),
            transposed=transposed,
            output_padding=per_axis(call["output_padding"], axes) if transposed else (),
        )

    def _matrix_shape(self, node: fx.Node) -> tuple[int, ...]:
        matrix = self._matrix(node)
        return matrix[1] if matrix else ()

    def affine(self, node: fx.Node) -> Affine:
        """The scale and shift of an affine call, in float64."""
        call = bind(node)
        if op_name(node) in NORMS:
            weight, bias, mean, var = (
                self.constants.get(call[key]) if call[key] is not None else None
                for key in ("weight", "bias", "running_mean", "running_var")
            )
            if mean is None or var is None:
                raise KeyError(node.name)
            return batchnorm_affine(weight, bias, mean, var, float(call["eps"]))
        return self._arithmetic_affine(node, call)

    def _arithmetic_affine(self, node: fx.Node, call: Mapping[str, Any]) -> Affine:
        kind = arithmetic(node)
        first, other = call["self"], call.get("other", 1)
        swapped = first not in self.values
        raw = first if swapped else other
        value = (
            to_numpy(self.constants[raw]).astype(np.float64).reshape(-1)
            if isinstance(raw, fx.Node)
            else np.asarray(float(raw))
        )
        value = value.reshape(()) if value.size == 1 else value
        alpha = float(call.get("alpha", 1))
        return arithmetic_affine(kind, value, alpha, swapped=swapped)
