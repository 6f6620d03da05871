"""A torch module as a model: what state dicts with an architecture and pickled modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Feeds, Forward, LoadOptions, Runner, Visit
from dacconv.formats.torch.convs import (
    INTERLEAVE_AXES,
    NORMS,
    read_affine,
    read_conv,
    to_numpy,
)
from dacconv.formats.torch.distil import distil_module
from dacconv.formats.torch.gradients import differentiable_module
from dacconv.formats.torch.members import named_modules, submodule
from dacconv.formats.torch.module.names import Names
from dacconv.formats.torch.module.order import UNREACHED, registered, symbolic, unreached
from dacconv.formats.torch.module.run import (
    as_arguments,
    flat_outputs,
    for_inference,
    input_specs,
    module_runner,
    needs_shape,
    seeded,
    told_shapes,
    without_onednn,
)
from dacconv.formats.torch.module.surgery import Edited, Tree, rewrite_module, rewrite_refusal
from dacconv.formats.torch.module.trace import Trace, trace
from dacconv.formats.torch.module.walk import Stop, in_step, stopping
from dacconv.formats.torch.precision import precision_refusal
from dacconv.graph.types import (
    Affine,
    Array,
    Construct,
    Conv,
    FloatArray,
    Graph,
    Rewrite,
    ValueSpec,
)
from dacconv.support.progress import Progress
from dacconv.support.user_code import user_code


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A module, as it was opened, and everything about it but how it is saved.

    ``edited`` are the qualified names of the modules that rewrites have replaced, ``kept``
    which layers of a block that became a Sequential were its own; see ``torch_surgery.Edited``.
    """

    has_dataflow: ClassVar[bool] = True
    named_layers: ClassVar[bool] = True
    engine: ClassVar[str] = "torch.nn"
    runtime: ClassVar[str] = f"torch {torch.__version__}"

    path: Path
    options: LoadOptions
    module: nn.Module
    edited: frozenset[str] = field(default_factory=frozenset)
    facts: tuple[str, ...] = ()
    kept: Mapping[str, Mapping[str, str]] = field(default_factory=dict, kw_only=True)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file that it was read from."""
        return (self.path,)

    @property
    def runnable(self) -> str | None:
        """Why it cannot be run: the size of its input is not known."""
        return needs_shape(self.inputs())

    @cached_property
    def _inference(self) -> nn.Module:
        with user_code("putting the module in eval mode", str(self.path)):
            return for_inference(self.module)

    @cached_property
    def _traced(self) -> tuple[Trace, Graph]:
        require_tree(self.module, self.path)
        specs = self.inputs()
        notes: tuple[str, ...] = ()
        order: Literal["execution", "registration"] = "execution"
        if needs_shape(specs) is None:
            found = self._run_once(specs)
        elif (by_symbols := symbolic(self._inference)) is not None:
            found = by_symbols
            notes = ("sizes are not known: give --input-shape",)
        else:
            found, order = registered(self._inference), "registration"
            notes = (
                "the order is that in which the modules are registered, and which of them are "
                "called is not known: give --input-shape",
            )
        names = Names.of(self._inference)
        nodes = list(found.nodes)
        if order == "execution":
            nodes += unreached(self._inference, found.used, names)
        sites = {n.name: found.sites[n.name] for n in nodes if n.name in found.sites}
        found = replace(found, sites=sites)
        graph = Graph(
            nodes=tuple(nodes),
            inputs=specs,
            outputs=found.outputs,
            order=order,
            notes=(*self.facts, *found.notes, *notes),
        )
        return found, graph

    def _run_once(self, specs: tuple[ValueSpec, ...]) -> Trace:
        feeds = seeded(specs)
        args, kwargs = as_arguments(self._inference, feeds)
        names = list(feeds)[: len(args)]
        doing = f"the model's forward, given {told_shapes(feeds)},"
        with user_code(doing, str(self.path), "is --input-shape what the network takes?"):
            return trace(self._inference, args, kwargs, names)

    def graph(self) -> Graph:
        """The dataflow of one run on a seeded input; see ``Model.graph``."""
        return self._traced[1]

    def _site(self, node: str) -> nn.Module:
        found, graph = self._traced
        if node not in found.sites:
            idle = next((n for n in graph.nodes if n.name == node and n.skip == UNREACHED), None)
            if idle is not None:  # named as its module
                return submodule(self.module, node)
            kind = next((n.kind for n in graph.nodes if n.name == node), None)
            what = "no such node" if kind is None else f"a call of {kind}, not a layer"
            raise UnsupportedError(what, where=node)
        return submodule(self.module, found.sites[node])

    def conv(self, node: str) -> Conv:
        """The conv, transposed conv or linear layer at a node."""
        return read_conv(self._site(node))

    def affine(self, node: str) -> Affine:
        """The BatchNorm, or arithmetic with constants, at a node."""
        constant = next((n.attrs.get("affine") for n in self.graph().nodes if n.name == node), None)
        if isinstance(constant, Affine):
            return constant
        return read_affine(self._site(node))

    @cached_property
    def _tree(self) -> Tree:
        found, graph = self._traced
        return Tree(self.module, graph, found.sites, found.blocks)

    def rewrite_refusal(self, edit: Rewrite, among: Sequence[Rewrite] = ()) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not."""
        return rewrite_refusal(edit, self._tree, among or (edit,))

    def constructs(self, axes: int, *, own_layers: bool) -> frozenset[Construct]:
        """Those of plain torch.nn layers and, where asked for, those of ``dacconv.nn``."""
        repeat: set[Construct] = {"interleave"} if axes <= INTERLEAVE_AXES else set()
        own: set[Construct] = {"sum", "parallel"} if own_layers else set()
        return frozenset(repeat | own)

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with plain layers in the place of the edited ones.

        Raises:
            UnsupportedError: an edit does not fit a module tree; see ``rewrite_refusal``.
        """
        made = rewrite_module(self._tree, edits)
        inside = tuple(f"{path}." for path in made.kept)
        before = {name for name in self.edited if not name.startswith(inside)}
        kept = {path: names for path, names in self.kept.items() if not path.startswith(inside)}
        after = replace(
            self,
            module=made.module,
            edited=frozenset(before) | made.changed,
            kept={**kept, **made.kept},
        )
        if edits and needs_shape(self.inputs()) is None:
            self._require_same_calls(after, edits, made)
        return after

    def _require_same_calls(self, after: Self, edits: Sequence[Rewrite], made: Edited) -> None:
        """Raise UnsupportedError where the model's code treats the new layers differently.

        Code that asks for a layer's class or attributes may pass the new ones by.
        """
        hint = "leave them alone with --skip"
        try:
            found, graph = after._traced
        except UsageError as error:
            what = f"the model's code cannot do with the new layers: {error.what}"
            raise UnsupportedError(what, where=str(self.path), hint=hint) from error
        reached = tuple(f"{path}." for path in found.sites.values())
        for path in sorted(made.changed):
            empty = isinstance(submodule(made.module, path), nn.Identity)
            if not empty and not any(name.startswith(f"{path}.") for name in reached):
                what = f"the model's code does not call what takes the place of '{path}'"
                raise UnsupportedError(what, where=str(self.path), hint=hint)
        if made.kept or found.notes:
            return  # a tail that became layers, or code that may branch on values
        gone = {name for edit in edits for name in (edit.target, *edit.drop)}
        new = {n for n, p in found.sites.items() if f"{p}.".startswith(_inside(made.changed))}
        for path in made.changed & found.calls.keys():  # what a Sum or Flatten does in there
            new.update(node for nodes in found.calls[path] for node in nodes)
        if _other_calls(self.graph(), gone) != _other_calls(graph, new):
            what = "the model's code calls other functions where it sees the new layers"
            raise UnsupportedError(what, where=str(self.path), hint=hint)

    def prepared(self) -> tuple[nn.Module, Callable[[Feeds], tuple[Any, Any]]]:
        """The module in eval mode, a copy with buffers of its own, and what makes its arguments."""
        module = self._inference
        return module, lambda feeds: as_arguments(module, feeds)

    def call_names(self) -> Mapping[str, str]:
        """None: a module's calls are known by the modules that make them."""
        return {}

    def precision_refusal(self, precision: str) -> str | None:
        """The reason why the model cannot be written in a precision; None if it can."""
        return precision_refusal(precision)

    def runner(self, *, threads: int | None = None) -> Runner:
        """Runs the module in eval mode without gradients."""
        if self.runnable:
            raise UnsupportedError(self.runnable, where=str(self.path))
        return module_runner(self._inference, self.path, threads)

    def unoptimised_runner(self, *, threads: int | None = None) -> Runner | None:
        """See ``Unoptimised``: without oneDNN."""
        return without_onednn(self.runner(threads=threads))

    def walk(
        self,
        nodes: Sequence[str],
        visit: Visit,
        batches: Sequence[Feeds],
        *,
        threads: int | None = None,
    ) -> list[dict[str, Array]]:
        """Run the module once over all batches in step; see ``Walkable``."""
        if threads is not None:
            torch.set_num_threads(threads)
        found, _ = self._traced
        module = for_inference(self.module)
        with (
            user_code("the model's forward, run layer by layer,", str(self.path)),
            stopping(module, found.sites, nodes) as begin,
        ):

            def run(index: int, stop: Stop) -> Any:
                begin(stop)
                args, kwargs = as_arguments(module, batches[index])
                return module(*args, **kwargs)

            results = in_step(run, len(batches), visit)
        return [flat_outputs(result) for result in results]

    def differentiable(
        self, nodes: Sequence[str], *, device: str | None
    ) -> AbstractContextManager[Forward]:
        """See ``models.base.Differentiable``."""
        sites = self._traced[0].sites
        return differentiable_module(self._inference, sites, nodes, device=device, where=self.path)

    def statistics(self, node: str) -> tuple[Array, Array] | None:
        """The mean and variance that a BatchNorm has stored, in float64; None for others."""
        module = self._site(node)
        if not isinstance(module, NORMS) or module.running_mean is None:
            return None
        if module.running_var is None:
            return None
        both = to_numpy(module.running_mean), to_numpy(module.running_var)
        return both[0].astype("float64"), both[1].astype("float64")

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
        """See ``calibration.prepare.Distillable``."""
        if len(self.inputs()) != 1:
            return None
        return distil_module(
            for_inference(self.module),
            images,
            low=low,
            high=high,
            device=device,
            progress=progress,
        )

    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs of ``forward``, with the user's shapes."""
        return input_specs(self.module, self.options.input_shapes, str(self.path))


def _inside(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{path}." for path in paths)


def _other_calls(graph: Graph, without: Set[str]) -> list[str]:
    """The calls that a run made, in order, apart from some of them."""
    return [
        node.kind
        for node in graph.nodes
        if node.name not in without and node.inputs and node.op != "identity"
    ]


def require_tree(module: nn.Module, path: Path) -> None:
    """Raise UnsupportedError where a module holds itself, so that its names never end."""
    try:
        for _ in named_modules(module, duplicates=True):
            pass
    except RecursionError as error:
        raise UnsupportedError(
            "the module tree contains itself, so its names have no end", where=str(path)
        ) from error
