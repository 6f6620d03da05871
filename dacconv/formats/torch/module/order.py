"""The layers of a module whose input size is not known: by symbolic trace, or as registered."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Set
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from dacconv.formats.torch.convs import module_geometry, weight_problem
from dacconv.formats.torch.members import named_modules, own_parameters, parameters, submodule
from dacconv.formats.torch.module.names import Names
from dacconv.formats.torch.module.trace import Trace, leaf_op
from dacconv.graph.types import LAYER_OPS, Node, Op

UNREACHED = "not reached by the forward pass"
"""Why a module that a run did not call is left alone."""

_ADDS = (operator.add, operator.iadd, torch.add)


def symbolic(root: nn.Module) -> Trace | None:
    """The dataflow by ``torch.fx``; None where the module's code does not allow it."""
    try:
        graph = fx.Tracer().trace(root)
    except Exception:  # user code under proxies can raise anything
        return None
    return _Reader(root, graph).read()


class _Reader:
    """Reads an fx graph into nodes."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.names = Names.of(root)
        self.root, self.graph = root, graph
        self.values: dict[fx.Node, str] = {}
        self.calls: dict[str, int] = {}
        self.sites: dict[str, str] = {}
        self.reads: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.counted: set[str] = set()

    def read_all(self) -> Iterator[str]:
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = str(node.target)
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op == "output":
                yield from (self.values[n] for n in node.all_input_nodes if n in self.values)
            else:
                self._call(node)

    def read(self) -> Trace:
        outputs = tuple(self.read_all())
        nodes = tuple(self._judged(node) for node in self.nodes)
        return Trace(nodes, outputs, self.sites, (), frozenset(self._used()))

    def _used(self) -> Iterator[str]:
        for node in self.graph.nodes:
            module = self._module(str(node.target)) if node.op == "call_module" else None
            if module is not None:
                yield from (self.names.tensor(p) or "" for p in parameters(module))

    def _attribute(self, node: fx.Node) -> None:
        user = next(iter(node.users), None)
        owner, _, name = str(node.target).rpartition(".")
        if isinstance(self._module(owner), (_ConvNd, nn.Linear)):
            self.reads[owner] = f"its {name} is also read by {user.name if user else 'the model'}"

    def _module(self, path: str) -> nn.Module | None:
        try:
            return submodule(self.root, path)
        except AttributeError:
            return None

    def _call(self, node: fx.Node) -> None:
        module = self._module(str(node.target)) if node.op == "call_module" else None
        path = "" if module is None else self.names.modules[id(module)]
        name = self._fresh(path or f"{node.name}()")
        op: Op = "other"
        kind = node.name if module is None else type(module).__name__
        geometry = weight = None
        params = 0
        if module is not None:
            op = leaf_op(module) or "other"
            self.sites[name] = path
            if op in LAYER_OPS:
                geometry = module_geometry(module)
                weight = self.names.tensor(module.get_parameter("weight"))
            if path not in self.counted:
                self.counted.add(path)
                params = sum(p.numel() for p in parameters(module))
        elif node.target in _ADDS and len(node.all_input_nodes) == 2 and len(node.args) == 2:
            op = "add" if "alpha" not in node.kwargs else "other"
        elif node.target in (torch.cat, torch.concat):
            axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            op = "concat" if axis == 1 else "other"
        inputs = tuple(self.values[n] for n in node.all_input_nodes if n in self.values)
        self.values[node] = f"{name}:0"
        self.nodes.append(
            Node(name, op, inputs, f"{name}:0", None, kind, weight, geometry, None, params)
        )

    def _fresh(self, wish: str) -> str:
        self.calls[wish] = self.calls.get(wish, 0) + 1
        return wish if self.calls[wish] == 1 else f"{wish}@{self.calls[wish]}"

    def _judged(self, node: Node) -> Node:
        path = self.sites.get(node.name)
        if path is None:
            return node
        if path in self.names.held:
            where = self.names.held[path]
            return replace(node, skip=f"it is also held in '{where}', outside the module tree")
        module = submodule(self.root, path)
        problem = weight_problem(module.weight) if isinstance(module, _ConvNd) else None
        return replace(node, skip=self.reads.get(path) or problem)


def registered(root: nn.Module) -> Trace:
    """The layers in the order in which the module tree holds them, without dataflow."""
    names = Names.of(root)
    nodes, sites = [], {}
    for path, module in named_modules(root):
        own = [p for _, p in own_parameters(module)]
        if not own and not isinstance(module, _ConvNd):
            continue
        name = path or type(module).__name__
        sites[name] = path
        nodes.append(module_node(module, name, names, (f"{name}:in",)))
    return Trace(tuple(nodes), (), sites, ())


def module_node(module: nn.Module, name: str, names: Names, inputs: tuple[str, ...]) -> Node:
    """The node of a module that holds parameters, apart from any dataflow."""
    op = leaf_op(module) or "other"
    skip = why_not_plain(module)
    if skip is None and isinstance(module, (_ConvNd, nn.Linear)):
        skip = weight_problem(module.weight)
    if skip is None and name in names.held:
        skip = f"it is also held in '{names.held[name]}', outside the module tree"
    geometry = weight = None
    if isinstance(module, (_ConvNd, nn.Linear)):
        kind: Op = "linear" if isinstance(module, nn.Linear) else "conv"
        op = "conv_transpose" if getattr(module, "transposed", False) else kind
        geometry = module_geometry(module)
        weight = names.tensor(module.weight)
    elif op == "affine":
        op = "other"  # what it follows is not known
    params = sum(p.numel() for _, p in own_parameters(module))
    return Node(
        name, op, inputs, f"{name}:0", None, type(module).__name__, weight, geometry, skip, params
    )


def why_not_plain(module: nn.Module) -> str | None:
    """Why a conv or linear module cannot be replaced by plain layers; None where it can."""
    if not isinstance(module, (_ConvNd, nn.Linear)) or leaf_op(module) is not None:
        return None
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which a replacement would lose"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    kind = type(module).__name__
    return f"a {kind}, whose forward is its own, not that of a plain torch.nn layer"


def unreached(root: nn.Module, used: Set[str], names: Names) -> list[Node]:
    """Nodes for the modules with parameters of which a run used none."""
    nodes = []
    for path, module in named_modules(root):
        own = [p for _, p in own_parameters(module)]
        if own and not any((names.tensor(p) or "") in used for p in own):
            node = module_node(module, path or type(module).__name__, names, ())
            idle = None if node.geometry is None else replace(node.geometry, batch=0)
            nodes.append(replace(node, geometry=idle, skip=UNREACHED))
    return nodes
