"""Reading an exported program into the neutral graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec

from dacconv.formats.torch.convs import batchnorm_affine, linear_value, to_numpy, weight_problem
from dacconv.formats.torch.module.arithmetic import arithmetic_affine
from dacconv.formats.torch.module.functions import per_axis
from dacconv.formats.torch.module.names import tensor_key
from dacconv.formats.torch.program.flow import (
    SIZED_AS,
    changed_later,
    evaluate,
    fill_of,
    holders,
    is_part_of_fill,
    written,
)
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
from dacconv.graph.types import Affine, Conv, Geometry, Node, Op, Shape

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_REPEAT = re.compile(r"@\d+")


def constant(program: ExportedProgram, spec: InputSpec) -> torch.Tensor | None:
    """The tensor behind a lifted parameter, buffer or constant."""
    if spec.kind not in _CONSTANTS or spec.target is None:
        return None
    for home in (program.state_dict, program.constants):
        found = home.get(spec.target)
        if isinstance(found, torch.Tensor):
            return found
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The nodes of a program, and what is needed to edit them.

    ``calls`` maps a node's name to the fx node whose value it makes (the ``getitem`` of a
    BatchNorm with several results), ``convs`` and ``affines`` to functions that read it.
    ``sources`` are the values that a new call can read.
    ``held`` maps a value that a call in place makes to the fx nodes that hold it afterwards.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[str, ...]
    calls: Mapping[str, fx.Node]
    convs: Mapping[str, Callable[[], Conv]]
    affines: Mapping[str, Callable[[], Affine]]
    notes: tuple[str, ...]
    held: Mapping[str, tuple[fx.Node, ...]] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()


def read_program(program: ExportedProgram, symbols: Mapping[Any, int]) -> Reading:
    """Read the graph; ``symbols`` are sizes for the symbols of dynamic shapes."""
    return _Reader(program, symbols).read()


@dataclass(slots=True, eq=False)
class _Reader:
    program: ExportedProgram
    symbols: Mapping[Any, int]
    constants: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    stems: dict[fx.Node, str] = field(default_factory=dict)
    keys: dict[object, str] = field(default_factory=dict)
    first: dict[fx.Node, str] = field(default_factory=dict)  # the first name of a tied weight
    mutated: set[str] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)
    values: dict[fx.Node, str] = field(default_factory=dict)
    calls: dict[str, fx.Node] = field(default_factory=dict)
    convs: dict[str, Callable[[], Conv]] = field(default_factory=dict)
    affines: dict[str, Callable[[], Affine]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    counted: set[str] = field(default_factory=set)
    inner: int = 0
    changed: set[fx.Node] = field(default_factory=set)
    held: dict[str, tuple[fx.Node, ...]] = field(default_factory=dict)

    def read(self) -> Reading:
        signature = self.program.graph_signature
        self.mutated = set(signature.buffers_to_mutate.values())
        graph = self.program.graph
        self.changed = changed_later(graph)
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        inputs: list[fx.Node] = []
        outputs: tuple[str, ...] = ()
        parents = set(self._owners(graph))
        for node in graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name], inputs)
            elif (value := evaluate(node, self.constants, self.changed)) is not None:
                self.constants[node] = value
        for node in graph.nodes:
            if node.op == "call_function":
                self._call(node, parents)
            elif node.op == "output":
                outputs = tuple(self.values[n] for n in node.all_input_nodes if n in self.values)
        notes: tuple[str, ...] = ()
        if self.inner:
            notes = (f"{self.inner} branches or loops of the graph (torch.cond, ...) are not read",)
        return Reading(
            nodes=tuple(self.nodes),
            inputs=tuple(inputs),
            outputs=outputs,
            calls=self.calls,
            convs=self.convs,
            affines=self.affines,
            notes=notes,
            held=self.held,
            sources=frozenset(node.name for node in graph.nodes),
        )

    def _placeholder(self, node: fx.Node, spec: InputSpec, inputs: list[fx.Node]) -> None:
        tensor = constant(self.program, spec)
        if tensor is not None and spec.target not in self.mutated:
            self.constants[node] = tensor
            self.stems[node] = str(spec.target)
            self.first[node] = self.keys.setdefault(tensor_key(tensor), str(spec.target))
            return
        self.values[node] = node.name
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument):
            inputs.append(node)

    # -- calls --------------------------------------------------------------------------

    def _call(self, node: fx.Node, parents: set[str]) -> None:
        if node.target is operator.getitem and self._of_norm(node):
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self.inner += 1
        if is_part_of_fill(node, self.constants):
            return  # the call that writes to it stands for it
        op, geometry, weight, attrs, skip = self._meaning(node)
        target = written(node)
        if target is not None and len(holders(target)) > 1 and op != "fill":
            op, attrs = "other", {}  # part of a larger value changes
        name = self._name(node, weight if geometry is not None else None, parents)
        self._offer(name, node, op, weight)
        inputs = tuple(self.values[n] for n in self._sources(node))
        if op_name(node) == "sym_size":
            inputs = ()  # the size of a value is not the value
        if op_name(node) in SIZED_AS:
            inputs = inputs[:1]
        if (fill := fill_of(node, self.constants)) is not None and op == "fill":
            inputs = (self.values[fill.base],)
        params = sum(self._count(n) for n in node.all_input_nodes if n in self.constants)
        self.values[node] = node.name
        self.calls[name] = node
        if target is not None:
            first, *bases = holders(target)
            if fill is not None:
                first, bases = fill.base, []
            self.held[node.name] = (first,)
            self.values[first] = node.name
            for base in bases:  # what it is now, no call made as a whole
                self.values[base] = f"{base.name} after {node.name}"
        identity = None
        if geometry is not None:
            identity = self.first.get(weight) if weight is not None else None
            identity = identity or f"{name}:weight"
        self.nodes.append(
            Node(
                name=name,
                op=op,
                inputs=inputs,
                output=node.name,
                shape=self.shape(node),
                kind=op_name(node),
                weight=identity,
                geometry=geometry,
                skip=skip,
                params=params,
                attrs=attrs,
            )
        )

    def _of_norm(self, node: fx.Node) -> bool:
        """Take ``getitem(batch_norm, 0)`` as the BatchNorm's value, and leave unread ones out."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or op_name(source) != NORMS[1]:
            return False
        if node.args[1] != 0:
            return not node.users
        name = next(name for name, call in self.calls.items() if call is source)
        self.calls[name] = node
        self.values[node] = self.values[source]
        return True

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """The values that a call reads, an argument that occurs twice twice."""
        found: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), found.append)
        return (n for n in found if n in self.values and n not in self.constants)

    def _meaning(
        self, node: fx.Node
    ) -> tuple[Op, Geometry | None, fx.Node | None, Mapping[str, Any], str | None]:
        name = op_name(node)
        if node in self.constants:
            return "other", None, None, {}, None
        if (fill := fill_of(node, self.constants)) is not None and fill.base in self.values:
            place = {"axis": fill.axis, "begin": fill.begin, "end": fill.end}
            return "fill", None, None, {**place, "value": to_numpy(fill.value)}, None
        if (kind := conv_kind(node)) is not None:
            weight = bind(node)["weight"]
            val = weight.meta["val"]
            geometry = conv_geometry(node, val, self.shape)
            return kind[0], geometry, weight, {}, self._why_not_conv(node, weight)
        if (matrix := self._matrix(node)) is not None:
            weight, shape, bias = matrix
            size = weight.meta["val"].element_size()
            geometry = matrix_geometry(shape, bias, self.shape(node), size)
            skip = None if name == "linear" else f"spelled as {name}"
            return "linear", geometry, weight, {}, skip or self._why_not_constant(weight)
        if name in NORMS:
            return self._norm(node)
        if (axis := self._affine_axis(node)) is not None:
            return "affine", None, None, {"axis": axis}, None
        if any(n in self.constants for n in node.all_input_nodes):
            return "other", None, None, {}, None
        op, attrs = describe(node, self.shape)
        return op, None, None, attrs, None

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
        given = call["other"] if name == "matmul" else call["mat2"]
        if given.meta["val"].ndim != 2:
            return None
        rows, columns = (int(s) for s in given.meta["val"].shape)
        return second, (columns, rows), name == "addmm"

    def _norm(
        self, node: fx.Node
    ) -> tuple[Op, Geometry | None, fx.Node | None, Mapping[str, Any], str | None]:
        call = bind(node)
        skip = None
        if call.get("training"):
            skip = "a BatchNorm in training mode: what it does depends on the batch"
        parts = [call[key] for key in ("weight", "bias", "running_mean", "running_var")]
        given = [part for part in parts if part is not None]
        if skip is None and not (parts[2] in self.constants and parts[3] in self.constants):
            return "other", None, None, {}, None
        if skip is None and any(part not in self.constants for part in given):
            return "other", None, None, {}, None
        extra = [u for u in node.users if u.target is operator.getitem and u.args[1] != 0]
        if skip is None and any(u.users for u in extra):
            skip = "its statistics are read as well"
        return "affine", None, None, {"axis": 1}, skip

    def _affine_axis(self, node: fx.Node) -> int | None:
        """The axis of arithmetic with constants, per channel or scalar; None for other calls."""
        kind = arithmetic(node)
        made = node.meta.get("val")
        if kind is None or not isinstance(made, torch.Tensor) or not made.is_floating_point():
            return None
        call = bind(node)
        if call.get("rounding_mode") or not is_constant_number(call.get("alpha", 1)):
            return None
        sides = [call["self"]] if kind == "neg" else [call["self"], call["other"]]
        values = [s for s in sides if isinstance(s, fx.Node) and s in self.values]
        if len(values) != 1 or (kind == "div" and sides[0] is not values[0]):
            return None
        source = values[0].meta.get("val")
        if not isinstance(source, torch.Tensor) or source.dtype != made.dtype:
            return None
        if self.shape(values[0]) != self.shape(node):
            return None
        other = next((s for s in sides if s is not values[0]), 1)
        if is_constant_number(other):
            return 1
        if not isinstance(other, fx.Node) or other not in self.constants:
            return None
        shape = (1,) * (made.ndim - self.constants[other].ndim) + tuple(self.constants[other].shape)
        wide = [axis for axis, size in enumerate(shape) if size != 1]
        return None if len(wide) > 1 or len(shape) > made.ndim else next(iter(wide), 1)

    # -- values of convs and affines, read on demand ----------------------------------------

    def _offer(self, name: str, node: fx.Node, op: Op, weight: fx.Node | None) -> None:
        if weight is not None and weight in self.constants:
            self.convs[name] = lambda: self._conv(node, weight)
        elif op == "affine":
            self.affines[name] = lambda: self._affine(node)

    def _conv(self, node: fx.Node, weight: fx.Node) -> Conv:
        call, tensor = bind(node), self.constants[weight]
        found = call.get("bias", call.get("self") if op_name(node) == "addmm" else None)
        bias = self.constants.get(found) if isinstance(found, fx.Node) else None
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
        found = self._matrix(node)
        return found[1] if found else ()

    def _affine(self, node: fx.Node) -> Affine:
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

    # -- names and shapes -------------------------------------------------------------------

    def shape(self, node: fx.Node) -> Shape | None:
        """The shape of a node's (first) value, symbols replaced where their size is known."""
        val = node.meta.get("val")
        if isinstance(val, (tuple, list)) and val:
            val = val[0]
        if not isinstance(val, torch.Tensor):
            return None
        return tuple(self._size(size) for size in val.shape)

    def _size(self, size: Any) -> int | None:
        if isinstance(size, int):
            return size
        found = size.node.expr.subs(dict(self.symbols))
        return int(found) if found.is_number else None

    def _owners(self, graph: fx.Graph) -> Iterator[str]:
        """Modules that hold others, or whose name a layer with weights will take."""
        for node in graph.nodes:
            for path in _paths(node):
                yield path.rpartition(".")[0]
            if node.op == "call_function" and conv_kind(node) is not None:
                yield from _paths(node)[-1:]

    def _name(self, node: fx.Node, weight: fx.Node | None, parents: set[str]) -> str:
        """The module's path; that of the weight for a layer; path and operator for the rest."""
        path = next(reversed(_paths(node)), "")
        if weight is not None:
            stem = self.stems.get(weight, "").removesuffix(".weight")
            inside = not path or stem == path or stem.startswith(f"{path}.")
            wish = (stem if inside else path) or node.name
        elif path and path not in parents:
            wish = path
        else:
            wish = ".".join(filter(None, (path, op_name(node).strip("_"))))
        name, count = wish, 1
        while name in self.taken:
            count += 1
            name = f"{wish}@{count}"
        self.taken.add(name)
        return name

    def _count(self, node: fx.Node) -> int:
        target = self.stems.get(node)
        if (
            target is None
            or target in self.counted
            or target not in self.program.graph_signature.parameters
        ):
            return 0
        self.counted.add(target)
        return self.constants[node].numel()


def _paths(node: fx.Node) -> list[str]:
    """The modules around a call, the outermost first; a repeated call is the same module."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = (_REPEAT.sub("", str(path)) for path, _ in stack.values())
    return [path for path in paths if not path.startswith("_empty_nn_module_stack")]
