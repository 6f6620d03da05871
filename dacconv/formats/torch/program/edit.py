"""Editing an exported program: new calls, parameters and signature, the rest as it was."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from dacconv.errors import UnsupportedError
from dacconv.formats.torch.convs import from_numpy, string_padding
from dacconv.formats.torch.module.names import tensor_key
from dacconv.formats.torch.program.flow import SIZED_AS, written
from dacconv.formats.torch.program.graph import Reading, constant
from dacconv.formats.torch.program.ops import bind, op_name
from dacconv.graph.convs import swap_channels
from dacconv.graph.types import Array, Chain, Conv, Repeat, Rewrite, convs_of

_KEPT_META = (
    "nn_module_stack",
    "stack_trace",
    "torch_fn",
    "source_fn_stack",
    "from_node",
    "custom",
)


def rewrite_refusal(edit: Rewrite, reading: Reading) -> str | None:
    """Why an edit cannot be made; None where it can."""
    names = {edit.target, *edit.drop}
    for node in reading.nodes:
        if node.name in names and node.skip:
            return f"{node.name}: {node.skip}"
    if names - reading.calls.keys():
        return f"no node '{min(names - reading.calls.keys())}' in the graph"
    if not any(name in reading.convs for name in names):
        return "there is no conv whose place the new one could take"
    if edit.source not in reading.sources:
        return f"the value {edit.source} is that of no single call"
    if any(conv.auto_pad for conv in convs_of(edit.branches)):
        return "padding that depends on the input size"
    return None


def _home(like: fx.Node) -> fx.Node:
    """The placeholder of a conv's weight, or of the first parameter that it is computed from."""
    node = bind(like)["weight"]
    while node.op != "placeholder":
        node = node.all_input_nodes[0]
    return node  # type: ignore[no-any-return]


def edit_program(
    program: ExportedProgram, reading: Reading, edits: Sequence[Rewrite]
) -> ExportedProgram:
    """A new program with the edits made; the old one shares its untouched weights.

    Raises:
        UnsupportedError: an edit cannot be made; :func:`rewrite_refusal` says so before.
    """
    for edit in edits:
        if reason := rewrite_refusal(edit, reading):
            raise UnsupportedError(reason, where=edit.target)
    editor = _Editor.of(program, reading)
    for edit in edits:
        editor.apply(edit)
    return editor.finish()


@dataclass(slots=True, eq=False)
class _Editor:
    program: ExportedProgram
    reading: Reading
    module: fx.GraphModule
    specs: list[InputSpec]
    state: dict[str, Any]
    fake: Any
    free: str
    parameters: dict[int, tuple[Array, fx.Node]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: ExportedProgram, reading: Reading) -> _Editor:
        module = copy.deepcopy(program.graph_module)
        for before, after in zip(program.graph.nodes, module.graph.nodes, strict=True):
            after.name = before.name  # copying renames what is called like a builtin: input, sum
        values = [n.meta["val"] for n in module.graph.nodes if "val" in n.meta]
        fake = detect_fake_mode([v for v in values if isinstance(v, torch.Tensor)])
        if fake is None:
            raise UnsupportedError("the program does not record the sizes of its values")
        specs = list(copy.deepcopy(program.graph_signature.input_specs))
        free = _free_sizes(program)
        return cls(program, reading, module, specs, dict(program.state_dict), fake, free)

    # -- one edit -----------------------------------------------------------------------

    def apply(self, edit: Rewrite) -> None:
        """Replace ``edit.target`` by the sum of its branches."""
        nodes = {node.name: node for node in self.module.graph.nodes}
        dropped = [nodes[self.reading.calls[name].name] for name in {edit.target, *edit.drop}]
        dropped = sorted(dropped, key=list(nodes.values()).index)
        target = nodes[self.reading.calls[edit.target].name]
        source = self._holder(edit.source, nodes)
        if source is None:
            raise UnsupportedError(f"no value '{edit.source}' in the graph", where=edit.target)
        like = self._like(edit, nodes)
        # before the first of them: later, a call in place may have changed the source
        with self.module.graph.inserting_before(dropped[0]):
            branches = edit.branches
            several = len(branches) > 1
            stems = [self._stem(like, n if several else None) for n in range(len(branches))]
            result = self._chain(branches[0], source, like, stems[0])
            for chain, stem in zip(branches[1:], stems[1:], strict=True):
                end = self._chain(chain, source, like, stem)  # added at once: one is held at a time
                result = self._call(torch.ops.aten.add.Tensor, (result, end), like)
        held = [nodes[node.name] for node in self.reading.held.get(target.name, ())]
        value = (self._holder(target.name, nodes) or target).meta["val"]
        if isinstance(value, torch.Tensor) and value.shape != result.meta["val"].shape:
            raise UnsupportedError("the new convs make a value of another shape", where=edit.target)
        result.meta["val"] = value
        aliases = [(nodes[old], nodes[new]) for old, new in edit.alias.items()]
        before = set(list(nodes.values())[: list(nodes.values()).index(target) + 1])
        target.replace_all_uses_with(result)
        for node in held:  # what read them after the call in place
            node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in before)
        for old, new in aliases:
            old.replace_all_uses_with(result if new is target else new)
        name = target.name
        self._erase(dropped, result, edit)
        result.name = name  # signatures and later edits know the value by its name

    def _holder(self, value: str, nodes: Mapping[str, fx.Node]) -> fx.Node | None:
        """The fx node that holds a value: not the call itself where that wrote to a slice."""
        node, held = nodes.get(value), self.reading.held.get(value, ())
        if node is not None and op_name(node) in ("copy_", "fill_") and held:
            return nodes[held[-1].name]
        return node

    def _like(self, edit: Rewrite, nodes: Mapping[str, fx.Node]) -> fx.Node:
        """The conv whose dtype, spelling and module the new ones take."""
        names = [edit.target, *edit.drop]
        name = next(name for name in names if name in self.reading.convs)
        return nodes[self.reading.calls[name].name]

    def _erase(self, dropped: Sequence[fx.Node], result: fx.Node, edit: Rewrite) -> None:
        for node in reversed(dropped):
            self._erase_unread_users(node)
            for user in list(node.users):
                sized = op_name(user) == "sym_size" or (
                    op_name(user) in SIZED_AS and user.args[0] is not node
                )
                if sized and _shape(node) == _shape(result):
                    user.replace_input_with(node, result)
            if node.users:
                reader = next(iter(node.users)).name
                raise UnsupportedError(f"'{node.name}' is also read by {reader}", where=edit.target)
            inputs = node.all_input_nodes
            self.module.graph.erase_node(node)
            for source in inputs:  # the BatchNorm behind a getitem, the transpose of a matrix
                self._erase_unread(source, dropped)

    def _erase_unread(self, node: fx.Node, dropped: Sequence[fx.Node]) -> None:
        """Remove a call, and those that were made for it alone, once nothing reads it."""
        self._erase_unread_users(node)
        if node.users or node.op != "call_function" or node in dropped or written(node):
            return
        inputs = node.all_input_nodes
        self.module.graph.erase_node(node)
        for source in inputs:
            self._erase_unread(source, dropped)

    def _erase_unread_users(self, node: fx.Node) -> None:
        """Erase the results of a BatchNorm that nothing reads."""
        for user in list(node.users):
            if user.target is operator.getitem and not user.users:
                self.module.graph.erase_node(user)

    # -- new calls ----------------------------------------------------------------------

    def _chain(self, chain: Chain, source: fx.Node, like: fx.Node, stem: str) -> fx.Node:
        value = source
        named = [step for step in chain if not isinstance(step, Repeat)]
        for step in chain:
            if isinstance(step, Repeat):
                value = self._joined([value] * step.copies, step.axes, like)
                continue
            own = f"{stem}.{named.index(step)}" if len(named) > 1 else stem
            if isinstance(step, Conv):
                value = self._conv(step, value, own, like)
            else:
                ends = [
                    self._conv(conv, value, f"{own}.{number}", like)
                    for number, conv in enumerate(step.convs)
                ]
                value = self._joined(ends, len(step.convs[0].kernel), like)
        return value

    def _joined(self, values: Sequence[fx.Node], axes: int, like: fx.Node) -> fx.Node:
        """The values joined along the channels, which come before ``axes`` spatial axes."""
        return self._call(torch.ops.aten.cat.default, (list(values), -1 - axes), like)

    def _stem(self, like: fx.Node, branch: int | None) -> str:
        """``features.0`` for what takes the place of ``features.0``; ``features.0.b1`` for a
        branch of it."""
        weight = _home(like)
        spec = next(s for s in self.specs if s.arg.name == weight.name)
        stem = str(spec.target).removesuffix(".weight")
        return stem if branch is None else f"{stem}.b{branch}"

    def _conv(self, conv: Conv, value: fx.Node, stem: str, like: fx.Node) -> fx.Node:
        stored = swap_channels(conv.weight, conv.groups) if conv.transposed else conv.weight
        weight = self._parameter(conv.weight, stored, f"{stem}.weight", like)
        bias = None
        if conv.bias is not None:
            bias = self._parameter(conv.bias, conv.bias, f"{stem}.bias", like)
        if not conv.kernel:
            return self._call(torch.ops.aten.linear.default, (value, weight, bias), like)
        axes = len(conv.kernel)
        padding: Any = [begin for begin, _ in conv.padding]
        lopsided = any(begin != end for begin, end in conv.padding)
        convolution = op_name(like) == "convolution"
        same = conv.padding == string_padding("same", conv.kernel, conv.dilation)
        if (
            lopsided
            and same
            and set(conv.stride) == {1}
            and not conv.transposed
            and not convolution
        ):
            padding = "same"
        elif lopsided or conv.pad_mode != "zeros":
            flat = [side for pair in reversed(conv.padding) for side in pair]
            mode = "constant" if conv.pad_mode == "zeros" else conv.pad_mode
            pad = (
                torch.ops.aten.constant_pad_nd.default
                if convolution
                else torch.ops.aten.pad.default
            )
            more = () if convolution else (mode,)
            value = self._call(pad, (value, flat, *more), like)
            padding = [0] * axes
        stride, dilation = list(conv.stride), list(conv.dilation)
        output_padding = list(conv.output_padding) if conv.transposed else [0] * axes
        if convolution:
            target = torch.ops.aten.convolution.default
            arguments: tuple[Any, ...] = (
                value, weight, bias, stride, padding, dilation, conv.transposed, output_padding,
                conv.groups,
            )  # fmt: skip
        elif conv.transposed:
            packet = getattr(torch.ops.aten, f"conv_transpose{axes}d")
            target = packet.input if axes > 1 else packet.default
            arguments = (
                value,
                weight,
                bias,
                stride,
                padding,
                output_padding,
                conv.groups,
                dilation,
            )
        else:
            packet = getattr(torch.ops.aten, f"conv{axes}d")
            target = packet.padding if padding == "same" else packet.default
            arguments = (value, weight, bias, stride, padding, dilation, conv.groups)
        return self._call(target, arguments, like)

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        node = self.module.graph.call_function(target, args)
        node.meta.update({k: like.meta[k] for k in _KEPT_META if k in like.meta})
        fakes = fx.map_arg(args, lambda n: n.meta["val"])
        # without the python dispatcher, padding would fix the symbolic sizes
        with self.fake, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = target(*fakes)
        return node

    # -- parameters ---------------------------------------------------------------------

    def _parameter(self, array: Array, stored: Array, wish: str, like: fx.Node) -> fx.Node:
        """The placeholder of a new parameter, made once per ``array``, beside the old one."""
        if id(array) in self.parameters:
            return self.parameters[id(array)][1]
        old = _home(like)
        index = next(i for i, spec in enumerate(self.specs) if spec.arg.name == old.name)
        model = constant(self.program, self.specs[index])
        if model is None:  # a weight of an earlier edit
            model = self.state[str(self.specs[index].target)]
        name, count = wish, 1
        while name in self.state or name in self.program.constants:
            count += 1
            name = f"{wish}_{count}"
        tensor = torch.nn.Parameter(from_numpy(stored, model), requires_grad=model.requires_grad)
        self.state[name] = tensor
        with self.module.graph.inserting_before(old):
            node = self.module.graph.placeholder(f"p_{name}".replace(".", "_"))
        node.target = node.name
        node.meta["val"] = self.fake.from_tensor(tensor, static_shapes=True)
        node.meta["tensor_meta"] = {}
        self.specs.insert(
            index, InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), name)
        )
        self.parameters[id(array)] = (array, node)  # keeps the array, and so its id, alive
        return node

    # -- the end ------------------------------------------------------------------------

    def _unread(self) -> Iterator[tuple[fx.Node, InputSpec]]:
        """Placeholders of weights that lost their last reader in these edits."""
        specs = {spec.arg.name: spec for spec in self.specs}
        lost: set[object] = set()
        unread: list[tuple[fx.Node, InputSpec, object]] = []
        before = {node.name for node in self.program.graph.nodes if node.users}
        for node in self.module.graph.nodes:
            if node.op != "placeholder" or node.users:
                continue
            tensor = constant(self.program, specs[node.name])
            if tensor is not None:
                unread.append((node, specs[node.name], tensor_key(tensor)))
                if node.name in before:
                    lost.add(tensor_key(tensor))
        for node, spec, key in unread:
            if key in lost:  # under this name, or under another name of the same weight
                yield node, spec

    def finish(self) -> ExportedProgram:
        """Drop what nothing reads any more and build the new program."""
        mutated = set(self.program.graph_signature.buffers_to_mutate.values())
        constants = dict(self.program.constants)
        for node, spec in list(self._unread()):
            if spec.target in mutated:
                continue
            self.module.graph.erase_node(node)
            self.specs.remove(spec)
            self._forget(str(spec.target), constants)
        self.module.graph.lint()
        if _free_sizes(self.program) != self.free:
            raise UnsupportedError("the edit would fix a size that the program leaves free")
        signature = copy.deepcopy(self.program.graph_signature)
        signature.input_specs = self.specs
        return ExportedProgram(
            root=self.module,
            graph=self.module.graph,
            graph_signature=signature,
            state_dict=self._ordered(),
            range_constraints=dict(self.program.range_constraints),
            module_call_graph=copy.deepcopy(self.program.module_call_graph),
            example_inputs=self.program.example_inputs,
            constants=constants,
            verifiers=self.program.verifiers,
        )

    def _forget(self, target: str, constants: dict[str, Any]) -> None:
        """Remove a weight, and other names of the same tensor that no input stands for."""
        used = {spec.target for spec in self.specs}
        for home in (self.state, constants):
            gone = home.get(target)
            if isinstance(gone, torch.Tensor):
                key = tensor_key(gone)
                same = [n for n, t in home.items() if n == target or _key(t) == key]
                for name in same:
                    if name not in used:
                        del home[name]

    def _ordered(self) -> dict[str, Any]:
        """The state dict with new entries where the signature has them, old ones as they were."""
        order = [str(spec.target) for spec in self.specs if spec.target in self.state]
        own_names = set(self.program.state_dict)
        if not set(order) - own_names:
            return self.state
        state: dict[str, Any] = dict.fromkeys(order)
        state |= self.state
        return state


def _shape(node: fx.Node) -> object:
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else node


def _free_sizes(program: ExportedProgram) -> str:
    """The sizes of the inputs: working on symbolic sizes can fix one for good."""
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    return str([tuple(v.shape) for v in values if isinstance(v, torch.Tensor)])


def _key(value: Any) -> object:
    return tensor_key(value) if isinstance(value, torch.Tensor) else None
