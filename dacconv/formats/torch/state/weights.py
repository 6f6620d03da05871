"""A state dict without its architecture: what the shapes and names of tensors can tell.

The calls, strides, groups and sizes are not in the file, so a conv is taken only where the
weights around it speak for it, or where the user vouches for it by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from dacconv.errors import UnsupportedError
from dacconv.formats.base import LoadOptions, Runner
from dacconv.formats.torch.convs import from_numpy, to_numpy
from dacconv.formats.torch.files.entries import wrapper_prefix
from dacconv.formats.torch.files.record import make_record
from dacconv.formats.torch.precision import precision_refusal
from dacconv.formats.torch.state.file import StateFile
from dacconv.formats.torch.state.weights_read import read_nodes
from dacconv.graph.types import (
    Affine,
    Array,
    Construct,
    Conv,
    Graph,
    Node,
    Plan,
    Rewrite,
    ValueSpec,
    convs_of,
)

_NOTE = (
    "weights only: the order is that of the file; which layers are called when, strides, "
    "groups, transposed convs and MACs cannot be known (--arch tells them)"
)
_SORTED = (
    "the file keeps its tensors sorted by name, so first and last layers are those of the alphabet"
)
_CANNOT_RUN = "weights alone cannot be run: give the architecture with --arch"


@dataclass(frozen=True, eq=False)
class WeightsModel:
    """The layers of a state dict by name; a layer's name is its key without ``.weight``."""

    format: ClassVar[str] = "weights"
    has_dataflow: ClassVar[bool] = False
    named_layers: ClassVar[bool] = True
    engine: ClassVar[str] = "torch.nn"
    runtime: ClassVar[str] = f"torch {torch.__version__}"

    path: Path
    source: StateFile
    options: LoadOptions = field(default_factory=LoadOptions)
    changes: Mapping[str, tuple[Conv, ...]] = field(default_factory=dict)
    facts: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file that it was read from."""
        return (self.path,)

    @property
    def runnable(self) -> str | None:
        """Never: there is no code."""
        return _CANNOT_RUN

    def inputs(self) -> tuple[ValueSpec, ...]:
        """Not known."""
        return ()

    @cached_property
    def _prefix(self) -> str:
        return wrapper_prefix(self.source.state)

    @cached_property
    def _graph(self) -> Graph:
        tensors = self.source.state.items()
        names = [k for k, t in tensors if isinstance(t, torch.Tensor) and t.ndim == 4]
        ordered = self.source.checkpoint.dtypes is None or names != sorted(names)
        nodes = tuple(
            read_nodes(self.source.state, self._prefix, self.options.vouched, ordered=ordered)
        )
        for name, chain in self.changes.items():
            nodes = tuple(n for node in nodes for n in _changed_nodes(node, name, chain))
        notes = (_NOTE, *self.facts, *(() if ordered else (_SORTED,)), *self.source.facts())
        return Graph(nodes, (), tuple(n.output for n in nodes[-1:]), order="file", notes=notes)

    def graph(self) -> Graph:
        """The layers in the order of the file; nothing is known of what they read."""
        return self._graph

    def conv(self, node: str) -> Conv:
        """The conv of that name, its stride taken as 1 and its padding as 0."""
        for name, chain in self.changes.items():
            if node.startswith(f"{name}.") and node.removeprefix(f"{name}.").isdecimal():
                return chain[int(node.rpartition(".")[2])]
        state, key = self.source.state, self._prefix + node
        weight = state.get(f"{key}.weight")
        if not isinstance(weight, torch.Tensor) or weight.ndim != 4:
            raise UnsupportedError("no conv of that name in the file", where=node)
        bias = state.get(f"{key}.bias")
        return Conv(
            weight=to_numpy(weight),
            bias=to_numpy(bias) if isinstance(bias, torch.Tensor) else None,
            stride=(1, 1),
            padding=((0, 0), (0, 0)),
            dilation=(1, 1),
        )

    def affine(self, node: str) -> Affine:
        """Not known: what a BatchNorm follows is not in the file."""
        raise UnsupportedError(_CANNOT_RUN, where=node)

    def rewrite_refusal(self, edit: Rewrite, among: Sequence[Rewrite] = ()) -> str | None:
        """The reason why ``rewrite`` would refuse an edit; None if it would not."""
        if set(edit.drop) - {edit.target}:
            return "layers cannot be merged: which one follows which is not in the file"
        if len(edit.branches) != 1:
            return "a sum of several branches has no place in a state dict"
        node = next((n for n in self._graph.nodes if n.name == edit.target), None)
        if node is None or node.op != "conv":
            return "no conv of that name in the file"
        if edit.target in self.changes or any(
            edit.target.startswith(f"{n}.") for n in self.changes
        ):
            return "it was replaced already"
        return node.skip

    def statistics(self, node: str) -> tuple[Array, Array] | None:
        """None: which BatchNorm follows which layer is not in the file."""
        return None

    def constructs(self, axes: int, *, own_layers: bool) -> frozenset[Construct]:
        """None: a chain of convs is all that can be read off the names of the weights."""
        return frozenset()

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """A new model with chains in the place of convs.

        Raises:
            UnsupportedError: an edit does more than that; ``rewrite_refusal`` says so before.
        """
        for edit in edits:
            if reason := self.rewrite_refusal(edit):
                raise UnsupportedError(reason, where=edit.target)
        return replace(
            self,
            changes={
                **self.changes,
                **{edit.target: tuple(convs_of(edit.branches)) for edit in edits},
            },
        )

    def precision_refusal(self, precision: str) -> str | None:
        """The reason why the model cannot be written in a precision; None if it can."""
        return precision_refusal(precision)

    def runner(self, *, threads: int | None = None) -> Runner:
        """Raises UnsupportedError: there is no code to run."""
        raise UnsupportedError(_CANNOT_RUN, where=str(self.path))

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write the container that came in; ``features.0`` gives ``features.0.0``, ``.0.1``."""
        earlier = self.source.record or {"modules": {}}
        record = make_record(plan, provenance, earlier["modules"], self.source.entry)
        return self.source.save(path, self._changed(), record)

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The plan, where the file has no room for it."""
        return self.source.side_files(path)

    def _changed(self) -> dict[str, dict[str, torch.Tensor]]:
        made: dict[int, torch.Tensor] = {}

        def tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
            if id(array) not in made:  # the chains hold the arrays, so ids stay theirs
                made[id(array)] = from_numpy(array, like)
            return made[id(array)]

        changed: dict[str, dict[str, torch.Tensor]] = {}
        for name, chain in self.changes.items():
            prefix = f"{self._prefix}{name}."
            like = self.source.state[f"{prefix}weight"]
            changed[prefix] = {}
            for index, conv in enumerate(chain):
                inner = f"{prefix}{index}." if len(chain) > 1 else prefix
                changed[prefix][f"{inner}weight"] = tensor(conv.weight, like)
                if conv.bias is not None:
                    changed[prefix][f"{inner}bias"] = tensor(conv.bias, like)
        return changed


def load_weights(
    source: StateFile, options: LoadOptions, facts: tuple[str, ...] = ()
) -> WeightsModel:
    """The model of a state dict alone; ``facts`` are for the report."""
    return WeightsModel(source.checkpoint.path, source, options, facts=facts)


def _changed_nodes(node: Node, name: str, chain: Sequence[Conv]) -> list[Node]:
    """The nodes of a chain in the place of the conv that it replaced."""
    if node.name != name or node.geometry is None:
        return [node]
    made: list[Node] = []
    for index, conv in enumerate(chain):
        inner = f"{name}.{index}" if len(chain) > 1 else name
        geometry = node.geometry.of(conv)
        params = conv.weight.size + (0 if conv.bias is None else conv.bias.size)
        source = node.inputs[0] if index == 0 else made[-1].output
        made.append(
            replace(node, name=inner, inputs=(source,), output=f"{inner}:0", geometry=geometry,
                    weight=f"{inner}.weight", params=params, skip="it was replaced already")
        )  # fmt: skip
    return made
