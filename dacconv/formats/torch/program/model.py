"""Programs of ``torch.export``: .pt2 files, which carry their own graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, Forward, LoadOptions, Runner, Visit
from dacconv.formats.torch.files.record import make_record, to_json
from dacconv.formats.torch.gradients import frozen
from dacconv.formats.torch.module.run import flat_outputs, told_shapes, without_onednn
from dacconv.formats.torch.module.walk import Stop, Stopping, in_step
from dacconv.formats.torch.precision import precision_refusal
from dacconv.formats.torch.program.edit import edit_program, rewrite_refusal
from dacconv.formats.torch.program.graph import Reading, read_program
from dacconv.formats.torch.program.part import live, part
from dacconv.graph.types import (
    Affine,
    Array,
    Construct,
    Conv,
    Graph,
    Plan,
    Rewrite,
    Shape,
    ValueSpec,
)
from dacconv.support.files import replacing
from dacconv.support.user_code import user_code

RECORD = "dacconv.json"
"""The extra file inside the archive that holds the plan and where the program comes from."""


@dataclass(frozen=True, eq=False)
class ProgramModel:
    """An exported program. ``extras`` are the extra files of its archive."""

    format: ClassVar[str] = "pt2"
    has_dataflow: ClassVar[bool] = True
    named_layers: ClassVar[bool] = False
    engine: ClassVar[str] = "torch"
    runtime: ClassVar[str] = f"torch {torch.__version__}"

    path: Path
    options: LoadOptions
    program: ExportedProgram
    extras: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file that it was read from."""
        return (self.path,)

    @property
    def runnable(self) -> str | None:
        """Why it cannot be run; None where it can."""
        for spec in self.program.graph_signature.input_specs:
            if spec.kind is InputKind.CUSTOM_OBJ:
                return f"its input '{spec.arg.name}' is an object, not a tensor"
        for node in self._placeholders:
            if not isinstance(node.meta.get("val"), torch.Tensor):
                return f"its input '{node.name}' is a number, not a tensor"
        for spec in self.inputs():
            if spec.shape is None or None in spec.shape[1:]:
                return (
                    f"the size of its input '{spec.name}' is not fixed: "
                    "give --input-shape 1,3,224,224"
                )
        return None

    @cached_property
    def _placeholders(self) -> tuple[fx.Node, ...]:
        """The user's inputs, without those that were fixed at export."""
        kinds = {
            spec.arg.name
            for spec in self.program.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument)
        }
        nodes = self.program.graph.nodes
        return tuple(n for n in nodes if n.op == "placeholder" and n.name in kinds)

    @cached_property
    def _given(self) -> dict[str, tuple[int, ...]]:
        """The user's shapes by input name, checked against the program."""
        nodes = {node.name: node for node in self._placeholders}
        first = next(iter(nodes), "")
        given = {name or first: shape for name, shape in self.options.input_shapes.items()}
        for name, shape in given.items():
            if name not in nodes:
                raise UsageError(
                    f"the program has no input '{name}'",
                    where=str(self.path),
                    hint=f"it takes {', '.join(nodes)}",
                )
            fixed = _sizes(nodes[name])
            if (
                fixed is None
                or len(fixed) != len(shape)
                or any(
                    want is not None and want != size
                    for want, size in zip(fixed, shape, strict=True)
                )
            ):
                has = "x".join("?" if s is None else str(s) for s in fixed or ())
                raise UsageError(
                    f"input '{name}' was exported as {has}, not {'x'.join(map(str, shape))}",
                    where=str(self.path),
                    hint="export it again with dynamic_shapes to use other sizes",
                )
        return given

    @cached_property
    def _symbols(self) -> dict[Any, int]:
        """The sizes that the user's shapes give to the symbols of dynamic axes."""
        found: dict[Any, int] = {}
        for node in self._placeholders:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and node.name in self._given:
                for size, number in zip(value.shape, self._given[node.name], strict=True):
                    if not isinstance(size, int) and size.node.expr.is_symbol:
                        found[size.node.expr] = number
        return found

    @cached_property
    def _reading(self) -> Reading:
        return read_program(self.program, self._symbols)

    @cached_property
    def _graph(self) -> Graph:
        reading = self._reading
        sizes = [_sizes(node) for node in self._placeholders]
        fixed = all(size is not None and None not in size[1:] for size in sizes)
        return Graph(
            reading.nodes, self.inputs(), reading.outputs, notes=reading.notes, fixed=fixed
        )

    def graph(self) -> Graph:
        """The aten calls of the program, named by the modules that they come from."""
        return self._graph

    def conv(self, node: str) -> Conv:
        """The conv, transposed conv or linear layer at a node."""
        if node not in self._reading.convs:
            raise UnsupportedError("no conv with a constant weight", where=node)
        return self._reading.convs[node]()

    def affine(self, node: str) -> Affine:
        """The BatchNorm, or arithmetic with constants, at a node."""
        if node not in self._reading.affines:
            raise UnsupportedError("no affine", where=node)
        return self._reading.affines[node]()

    def rewrite_refusal(self, edit: Rewrite, among: Sequence[Rewrite] = ()) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not."""
        return rewrite_refusal(edit, self._reading)

    def statistics(self, node: str) -> tuple[Array, Array] | None:
        """None: they are not read from exported programs."""
        return None

    def constructs(self, axes: int, *, own_layers: bool) -> frozenset[Construct]:
        """A graph has an operator for each of them."""
        return frozenset({"sum", "parallel", "repeat"})

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new program with the edits made.

        Raises:
            UnsupportedError: an edit cannot be made; ``rewrite_refusal`` says so before.
        """
        with quiet():
            return replace(self, program=edit_program(self.program, self._reading, edits))

    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs by the names that the program has for them."""
        return tuple(
            ValueSpec(node.name, self._given.get(node.name) or self._open(node), _dtype(node))
            for node in self._placeholders
        )

    def _open(self, node: fx.Node) -> Shape | None:
        """The shape of an input; its batch is the smallest allowed where that is not 1 or 2."""
        shape = _sizes(node)
        if not shape or shape[0] is not None:
            return shape
        expression = node.meta["val"].shape[0].node.expr
        ranges = self.program.range_constraints
        lowest = {s: max(1, _whole(ranges[s].lower)) for s in expression.free_symbols & set(ranges)}
        smallest = expression.subs(lowest)
        if not smallest.is_number or (expression.is_symbol and int(smallest) <= 2):
            return shape  # torch.export says 2 where it means any
        return (int(smallest), *shape[1:])

    def precision_refusal(self, precision: str) -> str | None:
        """The reason why the model cannot be written in a precision; None if it can."""
        return precision_refusal(precision)

    def runner(self, *, threads: int | None = None) -> Runner:
        """Runs ``program.module()``."""
        if self.runnable:
            raise UnsupportedError(self.runnable, where=str(self.path))
        where = str(self.path)
        module, _ = self.prepared()

        def run(feeds: Feeds) -> dict[str, Array]:
            if threads is not None:
                torch.set_num_threads(threads)
            args, kwargs = self._arguments(feeds)
            doing = f"the program, given {told_shapes(feeds)},"
            with user_code(doing, where, "does --input-shape fit it?"), torch.no_grad():
                result = module(*args, **kwargs)
            return flat_outputs(result)

        return run

    def unoptimised_runner(self, *, threads: int | None = None) -> Runner | None:
        """See ``Unoptimised``: without oneDNN."""
        return without_onednn(self.runner(threads=threads))

    def prepared(self) -> tuple[nn.Module, Callable[[Feeds], tuple[Any, Any]]]:
        """The program as a module, and what makes its arguments."""
        with quiet(), user_code("preparing the program", str(self.path)):
            return self.program.module(), self._arguments

    def call_names(self) -> Mapping[str, str]:
        """The graph's names by those of the program's fx nodes."""
        return {call.name: name for name, call in self._reading.calls.items()}

    def _arguments(self, feeds: Feeds) -> tuple[Any, Any]:
        """Positional and keyword arguments of ``program.module()``."""
        specs = self.program.graph_signature.input_specs
        names = [s.arg for s in specs if s.kind is InputKind.USER_INPUT]
        dtypes = {node.name: node.meta["val"].dtype for node in self._placeholders}
        flat = [
            argument.value
            if isinstance(argument, ConstantArgument)
            else torch.from_numpy(np.array(feeds[argument.name], order="C", copy=True)).to(
                dtypes[argument.name]
            )
            for argument in names
        ]
        args, kwargs = pytree.tree_unflatten(flat, self.program.call_spec.in_spec)
        return args, kwargs

    def walk(
        self,
        nodes: Sequence[str],
        visit: Visit,
        batches: Sequence[Feeds],
        *,
        threads: int | None = None,
    ) -> list[dict[str, Array]]:
        """Interpret the program once over all batches in step; see ``Walkable``."""
        if threads is not None:
            torch.set_num_threads(threads)
        where = str(self.path)
        module, places = self._interpreted(nodes)

        def run(index: int, stop: Stop) -> Any:
            args, kwargs = self._arguments(batches[index])
            flat = [*args, *kwargs.values()]
            return Stopping(module, places, stop).run(*flat)

        with quiet(), user_code("the program, run layer by layer,", where):
            results = in_step(run, len(batches), visit)
        return [flat_outputs(result) for result in results]

    def live(self, node: str) -> tuple[str, ...]:
        """See ``models.base.Divisible``."""
        return live(self.program, self._reading.calls[node])

    def resume(
        self, values: Feeds, outputs: Sequence[str] | None = None, *, threads: int | None = None
    ) -> Runner:
        """See ``models.base.Divisible``."""
        call = part(self.program, tuple(values), outputs)

        def run(feeds: Feeds) -> dict[str, Array]:
            if threads is not None:
                torch.set_num_threads(threads)
            return flat_outputs(call(feeds))

        return run

    @contextmanager
    def differentiable(self, nodes: Sequence[str], *, device: str | None) -> Iterator[Forward]:
        """See ``models.base.Differentiable``; on the CPU, for which programs are written."""
        interpreted, places = self._interpreted(nodes)
        module = frozen(interpreted, torch.device("cpu"))

        def run(feeds: Feeds, stop: Stop) -> dict[str, Array]:
            args, kwargs = self._arguments(feeds)
            with quiet(), user_code("the program, for gradients,", str(self.path)):
                result = Stopping(module, places, stop).run(*args, *kwargs.values())
            return flat_outputs(result)

        yield run

    def _interpreted(self, nodes: Sequence[str]) -> tuple[fx.GraphModule, dict[str, str]]:
        """The program as a graph module, and the nodes of it that stand for ``nodes``."""
        where = str(self.path)
        places = {self._reading.calls[node].name: node for node in nodes}
        with quiet(), user_code("preparing the program", where):
            module = self.program.module()
        if not isinstance(module, fx.GraphModule) or places.keys() - {
            node.name for node in module.graph.nodes
        }:
            raise UnsupportedError("this torch gives the program's nodes other names", where=where)
        return module, places

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write a .pt2 that ``torch.export.load`` opens; the plan is its extra file."""
        record = to_json(make_record(plan, provenance, {}, ""))
        extras = {**self.extras, RECORD: record}
        whole = io.BytesIO()  # on a full disk, torch would end the process, not raise
        with quiet():
            torch.export.save(self.program, whole, extra_files=extras)
        with replacing(path) as (temporary,):
            temporary.write_bytes(whole.getbuffer())
        return (path,)

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """None: the plan lies inside."""
        return ()


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's log records and deprecation warnings, which are not for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _sizes(node: fx.Node) -> Shape | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _whole(bound: Any) -> int:
    try:
        return int(bound)
    except (TypeError, ValueError, OverflowError):
        return 1


def _dtype(node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return "int64"
    name = str(value.dtype).removeprefix("torch.")
    return "float32" if name == "bfloat16" else name
