"""Reading an exported program into the neutral graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec

from dacconv.formats.torch.module.names import tensor_key
from dacconv.formats.torch.program.calls import Calls
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
    conv_kind,
    op_name,
)
from dacconv.graph.types import Affine, Conv, Node, Op, Shape

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_REPEAT = re.compile(r"@\d+")


def constant(program: ExportedProgram, spec: InputSpec) -> torch.Tensor | None:
    """The tensor behind a lifted parameter, buffer or constant."""
    if spec.kind not in _CONSTANTS or spec.target is None:
        return None
    for home in (program.state_dict, program.constants):
        tensor = home.get(spec.target)
        if isinstance(tensor, torch.Tensor):
            return tensor
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
    reader: Calls = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Calls(self.constants, self.values, self.shape)

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
        meaning, weight = self.reader.meaning(node)
        target = written(node)
        if target is not None and len(holders(target)) > 1 and meaning.op != "fill":
            meaning = replace(meaning, op="other", attrs={})  # part of a larger value changes
        name = self._name(node, weight if meaning.geometry is not None else None, parents)
        self._offer(name, node, meaning.op, weight)
        inputs = tuple(self.values[n] for n in self._sources(node))
        if op_name(node) == "sym_size":
            inputs = ()  # the size of a value is not the value
        if op_name(node) in SIZED_AS:
            inputs = inputs[:1]
        if (fill := fill_of(node, self.constants)) is not None and meaning.op == "fill":
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
        if meaning.geometry is not None:
            identity = self.first.get(weight) if weight is not None else None
            identity = identity or f"{name}:weight"
        self.nodes.append(
            Node(
                name=name,
                op=meaning.op,
                inputs=inputs,
                output=node.name,
                shape=self.shape(node),
                kind=op_name(node),
                weight=identity,
                geometry=meaning.geometry,
                skip=meaning.skip,
                params=params,
                attrs=meaning.attrs,
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
        operands: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), operands.append)
        return (n for n in operands if n in self.values and n not in self.constants)

    def _offer(self, name: str, node: fx.Node, op: Op, weight: fx.Node | None) -> None:
        if weight is not None and weight in self.constants:
            self.convs[name] = lambda: self.reader.conv(node, weight)
        elif op == "affine":
            self.affines[name] = lambda: self.reader.affine(node)

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
        number = size.node.expr.subs(dict(self.symbols))
        return int(number) if number.is_number else None

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
