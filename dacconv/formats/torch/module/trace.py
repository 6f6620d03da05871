"""Running a module once and writing down what it does: its nodes in order of execution.

The module itself runs, eagerly, on one seeded input; a torch function mode sees every call
and global hooks see every module. Nothing is guessed from the source: what is recorded is
what happened. In-place operations make new values, also for the views of what they change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode, resolve_name

from dacconv.formats.torch.convs import CONVS, NORMS, TRANSPOSED, module_geometry, weight_problem
from dacconv.formats.torch.meaning import Meaning
from dacconv.formats.torch.members import children, modules, own_parameters
from dacconv.formats.torch.module.arithmetic import OF_CONSTANTS, constant_affine
from dacconv.formats.torch.module.blocks import Block
from dacconv.formats.torch.module.functions import conv_call, describe_call
from dacconv.formats.torch.module.ledger import Ledger, version_of, writes
from dacconv.formats.torch.module.names import Names, loose_tensors
from dacconv.formats.torch.module.unwatched import (
    WatchedOperators,
    tensors_elsewhere,
    watching_creators,
)
from dacconv.graph.types import LAYER_OPS, Node, Op

_DATA_READS = frozenset(
    {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item",
     "tolist", "numpy", "__array__", "equal", "allclose", "is_nonzero", "__dlpack__"}
)  # fmt: skip
_PLAIN_READS = frozenset(
    {"forward", "training", "train", "eval", "children", "modules", "named_children",
     "named_modules", "parameters", "named_parameters", "buffers", "named_buffers", "state_dict"}
)  # fmt: skip
_WATCHED: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear, _BatchNorm)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one run did.

    ``outputs`` are the values that it returned, or left in attributes for the next run.
    ``blocks`` are the modules that are called once, with one tensor, and return one.
    ``sites`` maps the nodes that are modules to the module's name; ``used`` are the names of
    the parameters that were read; ``calls`` are the nodes inside every call of each module.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    sites: Mapping[str, str]
    notes: tuple[str, ...]
    used: frozenset[str] = frozenset()
    blocks: Mapping[str, Block] = field(default_factory=dict)
    calls: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)


def leaf_op(module: nn.Module) -> Op | None:
    """The op of a plain torch.nn layer that is taken whole; None for all other modules."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return None
    kind = type(module)
    if kind not in NORMS and module._parameters.get("weight") is None:
        return None  # some other code keeps the weight
    if kind in CONVS:
        return "conv"
    if kind in TRANSPOSED:
        return "conv_transpose"
    if kind is nn.Linear:
        return "linear"
    if kind in NORMS:
        fixed = not module.training and getattr(module, "running_mean", None) is not None
        return "affine" if fixed else None
    return None


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors of a nest of tuples, lists, dicts and objects with fields, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item)]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_in(item)]
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return [t for name in value.__dataclass_fields__ for t in tensors_in(getattr(value, name))]
    return []


def trace(
    root: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Sequence[str] = (),
) -> Trace:
    """Run ``root`` (in eval mode already) once and return what it did.

    ``names`` are those of the positional inputs. Whatever the module raises goes through.
    """
    elsewhere = tensors_elsewhere(tensors_in((args, kwargs)))
    recorder = _Recorder(Names.of(root, elsewhere), root)
    for name, tensor in (*zip(names, args, strict=True), *kwargs.items()):
        recorder.ledger.name_value(tensor, name)
    operators = WatchedOperators(recorder.operator)
    with torch.no_grad(), recorder.watching(), operators, recorder:
        result = root(*args, **kwargs)
    return recorder.finish(tensors_in(result))


class _Recorder(TorchFunctionMode):
    """Sees every torch call and every module call; see :func:`trace`."""

    def __init__(self, names: Names, root: nn.Module) -> None:
        super().__init__()
        self.names = names
        self.root = root
        self.stack: list[nn.Module] = []
        self.entries: list[tuple[int, str | None]] = []  # per module on the stack, at its start
        self.calls: dict[str, list[tuple[tuple[str, ...], Block | None]]] = {}
        self.inside: nn.Module | None = None  # the leaf whose own calls are not recorded
        self.ledger = Ledger(names)
        self.sites: dict[str, str] = {}
        self.wholes: dict[str, str] = {}  # the same for modules that are one call of a function
        self.readers: dict[str, str] = {}  # tensor name -> who read it outside its layer
        self.touched: dict[str, str] = {}  # conv -> attribute that the model's code reads
        self.constants: set[str] = set()  # values that follow from the model's own tensors
        self.dynamic: str | None = None
        self.depth = 0  # of torch functions, whose own operators are not recorded

    # -- what is seen -------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside is not None:
            return func(*args, **kwargs)
        taken = tensors_in((args, kwargs))
        sources = [self.ledger.lookup(t) for t in taken]
        versions = [version_of(t) for t in taken]
        self.depth += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self.depth -= 1
        written = [
            t
            for t, v in zip(taken, versions, strict=True)
            if version_of(t) != v or (v is None and writes(func, t, args, kwargs))
        ]
        self._record(func, args, kwargs, taken, sources, written, result)
        return result

    def operator(self, name: str, given: Any, result: Any, written: list[torch.Tensor]) -> None:
        """Record an operator that compiled code has called."""
        if self.inside is not None or self.depth:
            return
        taken = tensors_in(given)
        if name == "lift_fresh":  # the last step of every constructor that takes Python's data
            self.created(result)
            return
        if not written and all(self.ledger.known(t) is None for t in taken):
            return
        sources = [self.ledger.lookup(tensor) for tensor in taken]
        for tensor in taken:
            if (constant := self.names.tensor(tensor)) is not None:
                self.readers.setdefault(constant, f"{name} in {self._place() or 'forward'}")
        made = [t for t in tensors_in(result) if all(t is not w for w in written)] + written
        if name in ("_local_scalar_dense", "equal", "item", "is_nonzero"):
            self.dynamic = self.dynamic or f"{name.strip('_')} in {self._place() or 'forward'}"
        if made:
            node = self._fresh_call(name)
            values = [source for source in sources if source is not None]
            self.ledger.emit(node, Meaning(), values, made, kind=name.strip("_"))
            for tensor in written:
                self.ledger.written(tensor, node)

    def created(self, tensor: torch.Tensor) -> None:
        """Record a tensor that was made of an array, and so depends on no value of the run."""
        if self.inside is None and not self.depth and self.ledger.known(tensor) is None:
            node = self._fresh_call("from_array")
            self.constants.add(f"{node}:0")
            self.ledger.emit(node, Meaning(), [], [tensor], kind="from_array")

    def _record(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        taken: list[torch.Tensor],
        sources: list[str | None],
        written: list[torch.Tensor],
        result: Any,
    ) -> None:
        name = (resolve_name(func) or getattr(func, "__name__", str(func))).removesuffix(".__get__")
        short = name.rpartition(".")[2]
        values = [source for source in sources if source is not None]
        if short in _DATA_READS and values:
            self.dynamic = self.dynamic or f"{short.strip('_')} in {self._place() or 'forward'}"
        given = {id(t) for t in taken} - {id(t) for t in written}
        made = [t for t in tensors_in(result) if not (id(t) in given and self.ledger.known(t))]
        made += [t for t in written if all(t is not m for m in made)]
        if not made:
            return
        node = self._fresh_call(short)
        params = 0
        for tensor in taken:
            if (constant := self.names.tensor(tensor)) is not None:
                self.readers.setdefault(constant, f"{short} in {self._place() or 'forward'}")
                params += self.ledger.count(constant, tensor)
        meaning = self._meaning(name, args, kwargs, sources, made[0])
        weight = None if meaning.geometry is None else self._weight_of(args, kwargs, node)
        if taken and short.strip("_") in OF_CONSTANTS and self.constants.issuperset(values):
            self.constants.add(f"{node}:0")
        if meaning.op in ("affine", "identity"):
            values = [value for value in values if value not in self.constants]
        self.ledger.emit(
            node, meaning, values, made, kind=short.strip("_"), weight=weight, params=params
        )
        for tensor in written:
            self.ledger.written(tensor, node)

    def _meaning(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        sources: list[str | None],
        made: torch.Tensor,
    ) -> Meaning:
        """What a call is, and why it cannot be edited."""
        found = conv_call(name, args, kwargs, made)
        if found is not None:
            op, weight, geometry = found
            return Meaning(op, {}, geometry, self._why_functional(op, weight))
        affine = constant_affine(name, args, kwargs, made, self._is_constant)
        if affine is not None:
            if np.all(affine[0].scale == 1) and not affine[0].shift.any():
                return Meaning("identity")  # a branch that is not there: x + 0
            return Meaning("affine", {"axis": affine[1], "affine": affine[0]})
        op, attrs = describe_call(name, args, kwargs, made)
        constant = any(source is None or source in self.constants for source in sources)
        if op in ("add", "concat") and constant:
            return Meaning()
        return Meaning(op, attrs)

    def _is_constant(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the model's own, or made of such alone."""
        return self.ledger.is_constant(tensor) or self.ledger.known(tensor) in self.constants

    def _why_functional(self, op: Op, weight: Any) -> str:
        """Why the conv behind a bare function call is left alone."""
        owner = self.stack[-1] if self.stack else self.root
        kind = type(owner).__name__
        if not isinstance(weight, torch.Tensor) or self.names.tensor(weight) is None:
            return f"its weight is computed while the model runs (in a {kind})"
        if isinstance(owner, (_ConvNd, nn.Linear)):
            if owner._forward_hooks or owner._forward_pre_hooks:
                return "it has forward hooks, which a replacement would lose"
            if "forward" in vars(owner):
                return "its forward was replaced on the instance"
            if type(owner) not in (*CONVS, *TRANSPOSED, nn.Linear):
                return f"a {kind}, whose forward is its own, not that of a plain torch.nn layer"
        return f"a functional {op}: called as a function, not as a torch.nn layer (in a {kind})"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Global hooks on module calls, and a watch on the attributes of convs."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

        def watch(module: Any, name: str) -> Any:
            if not name.startswith("_") and name not in _PLAIN_READS:
                self._touch(module, name)
            return object.__getattribute__(module, name)

        kinds = {*_WATCHED, *(type(module) for module in modules(self.root))}
        kinds = {kind for kind in kinds if kind.__getattribute__ is object.__getattribute__}
        for kind in kinds:
            kind.__getattribute__ = watch  # type: ignore[method-assign]
        try:
            with watching_creators(self.created):
                yield
        finally:
            for kind in kinds:
                del kind.__getattribute__
            for handle in handles:
                handle.remove()

    def _touch(self, module: nn.Module, attribute: str) -> None:
        if self.inside is not module and not any(m is module for m in self.stack):
            name = self.names.modules.get(id(module))
            if name is not None:
                self.touched.setdefault(name, attribute)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.inside is None:
            single = len(args) == 1 and isinstance(args[0], torch.Tensor)
            source = self.ledger.lookup(args[0]) if single else None
            self.stack.append(module)
            self.entries.append((len(self.ledger.nodes), source))
            if leaf_op(module) is not None and id(module) in self.names.modules:
                self.inside = module

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        kwargs, result = rest if len(rest) == 2 else ({}, None)  # of a call that raised
        if self.inside is not None and self.inside is not module:
            return
        start: tuple[int, str | None] = (0, None)
        while self.stack:
            left, start = self.stack.pop(), self.entries.pop()
            if left is module:
                break
        if self.inside is module:
            if isinstance(result, torch.Tensor):  # None where the layer raised
                self._leaf(module, tensors_in((args, kwargs)), result)
            self.inside = None
        elif next(children(module), None) is None:
            self._whole(module, self.ledger.nodes[start[0] :])
        if (path := self.names.modules.get(id(module))) is not None:
            inside = tuple(node.name for node in self.ledger.nodes[start[0] :])
            block = self._block(start[1], inside, kwargs, result)
            self.calls.setdefault(path, []).append((inside, block))

    def _block(
        self, source: str | None, inside: tuple[str, ...], kwargs: Any, result: Any
    ) -> Block | None:
        if source is None or kwargs or not isinstance(result, torch.Tensor):
            return None
        made = self.ledger.lookup(result)
        return None if made is None else Block(source, made, inside)

    def _leaf(self, module: nn.Module, taken: list[torch.Tensor], result: torch.Tensor) -> None:
        path = self.names.modules[id(module)]
        name = self.ledger.fresh(path or type(module).__name__, module=True)
        self.sites[name] = path
        op = leaf_op(module) or "other"
        own = dict(own_parameters(module))
        geometry = weight = skip = None
        if op != "affine":
            geometry = module_geometry(module, taken[0], result)
            weight = self.names.tensor(own["weight"])
            skip = weight_problem(own["weight"])
        params = sum(self.ledger.count(self.names.tensor(p) or "", p) for p in own.values())
        values = [value for tensor in taken if (value := self.ledger.lookup(tensor))]
        attrs = {"module": path} if op in LAYER_OPS else {}
        meaning = Meaning(op, attrs, geometry, skip)
        kind = type(module).__name__
        self.ledger.emit(name, meaning, values, [result], kind=kind, weight=weight, params=params)

    def _whole(self, module: nn.Module, inside: Sequence[Node]) -> None:
        """Note a module without children whose call was one node: it can be replaced too."""
        path = self.names.modules.get(id(module))
        if path and len(inside) == 1 and inside[0].op in ("pool", "pad", "identity"):
            self.wholes[inside[0].name] = path

    def _place(self) -> str:
        return self.names.modules.get(id(self.stack[-1]), "") if self.stack else ""

    def _fresh_call(self, short: str) -> str:
        """The name of a function call: that of the module where the module is only this."""
        place = self._place()
        if place and next(children(self.stack[-1]), None) is None:
            return self.ledger.fresh(place, module=True)
        return self.ledger.fresh(".".join(filter(None, (place, short.strip("_") or "call"))))

    def _weight_of(self, args: Any, kwargs: Any, node: str) -> str:
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        named = self.names.tensor(weight) if isinstance(weight, torch.Tensor) else None
        return named or f"{node}:weight"

    # -- the end ------------------------------------------------------------------------

    def finish(self, outputs: Sequence[torch.Tensor]) -> Trace:
        """The nodes with the reasons that only the whole run shows."""
        values = tuple(self.ledger.lookup(t) or self.names.tensor(t) or "" for t in outputs)
        left = (self.ledger.known(tensor) for _, tensor in loose_tensors(self.root))
        values += tuple(v for v in dict.fromkeys(left) if v is not None and v not in values)
        blind = None
        notes = []
        if self.dynamic:
            blind = f"the model's code looks at values ({self.dynamic}), so it may branch on them"
            notes.append(f"{blind}; the graph is that of one seeded input")
        elif self.ledger.unseen:
            blind = "some tensors come from code that could not be watched"
            notes.append(f"{blind}, so nothing is fused")
        counts = Counter(self.wholes.values())  # a module is a layer at all its calls or at none
        wholes = {n: p for n, p in self.wholes.items() if counts[p] == len(self.calls[p])}
        self.sites |= wholes
        nodes = tuple(self._judged(node, blind) for node in self.ledger.nodes)
        blocks = {
            path: calls[0][1]
            for path, calls in self.calls.items()
            if len(calls) == 1 and calls[0][1] is not None and path not in self.touched
            and path not in self.names.held
        }  # fmt: skip
        calls = {path: tuple(nodes for nodes, _ in made) for path, made in self.calls.items()}
        used = frozenset(self.ledger.counted)
        return Trace(nodes, values, dict(self.sites), tuple(notes), used, blocks, calls)

    def _judged(self, node: Node, blind: str | None) -> Node:
        if node.skip:
            return node
        path = self.sites.get(node.name)
        skip = None if path is None else self._why_not(path, node)
        if skip is None and node.op not in ("conv", "linear", "conv_transpose", "other"):
            skip = blind  # a conv may be replaced by itself, but nothing may be merged into it
        return replace(node, skip=skip)

    def _why_not(self, path: str, node: Node) -> str | None:
        """What the rest of the run does to a layer that makes it unsafe to replace."""
        if path in self.touched:
            return f"the model's own code reads its attribute '{self.touched[path]}'"
        if path in self.names.held:
            return f"it is also held in '{self.names.held[path]}', outside the module tree"
        prefix = f"{path}." if path else ""
        for own in ("weight", "bias"):
            reader = self.readers.get(f"{prefix}{own}")
            if reader:
                return f"its {own} is also read by {reader}"
        if node.weight in self.readers:
            return f"its weight is also read by {self.readers[node.weight]}"
        return "the model is this one layer" if path == "" else None
