"""A model made of plain values: the smallest thing that the fusions run on.

It runs by torch in float64 and carries out edits to the letter, so that an edit which leaves
somebody reading a value that is gone fails here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from conv_reference import apply, run

from dacconv.graph.types import Affine, Conv, Geometry, Graph, Node, ValueSpec


@dataclass(frozen=True)
class Merged:
    """What a rewrite puts in the place of its target."""

    branches: tuple[tuple[Conv, ...], ...]


@dataclass
class Toy:
    """Build it by calling its methods with value names; each returns the name of its value."""

    nodes: list[Node] = field(default_factory=list)
    payload: dict[str, object] = field(default_factory=dict)
    specs: list[ValueSpec] = field(default_factory=list)
    outputs: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    known_shapes: bool = True

    # -- what the fusions see ------------------------------------------------------------

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), tuple(self.specs), self.outputs, fixed=self.known_shapes)

    def conv(self, node: str) -> Conv:
        payload = self.payload[node]
        assert isinstance(payload, Conv)
        return payload

    def affine(self, node: str) -> Affine:
        payload = self.payload[node]
        assert isinstance(payload, Affine)
        return payload

    def rewrite_refusal(self, edit, among=()):
        """None: every edit can be made."""
        return

    def rewrite(self, edits) -> Toy:
        nodes = {node.name: node for node in self.nodes}
        payload = dict(self.payload)
        for edit in edits:
            old = nodes[edit.target]
            nodes[edit.target] = replace(old, op="other", kind="merged", inputs=(edit.source,))
            payload[edit.target] = Merged(edit.branches)
            for name in set(edit.drop) - {edit.target}:
                del nodes[name]
        for edit in edits:
            for gone, other in edit.alias.items():
                assert gone not in self.outputs
                for name, node in nodes.items():
                    inputs = tuple(other if value == gone else value for value in node.inputs)
                    nodes[name] = replace(node, inputs=inputs)
        made = Toy(list(nodes.values()), payload, self.specs, self.outputs)
        made.check()
        return made

    def check(self) -> None:
        """Every value is made before it is read."""
        known = {spec.name for spec in self.specs}
        for node in self.nodes:
            assert known.issuperset(node.inputs), f"{node.name} reads {node.inputs}"
            known.add(node.output)
        assert known.issuperset(self.outputs)

    # -- running -------------------------------------------------------------------------

    def run(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        values = {spec.name: rng.normal(size=spec.shape) for spec in self.specs}
        for node in self.nodes:
            values[node.output] = self._step(node, [values[name] for name in node.inputs])
        return [values[name] for name in self.outputs]

    def _step(self, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
        payload = self.payload.get(node.name)
        if isinstance(payload, Merged):
            return sum(self._chain(chain, inputs[0]) for chain in payload.branches)
        if isinstance(payload, Conv):
            return run(payload, inputs[0])
        if isinstance(payload, Affine):
            return apply(payload, inputs[0], node.attrs.get("axis", 1))
        assert callable(payload)
        return payload(*inputs)

    @staticmethod
    def _chain(chain, value: np.ndarray) -> np.ndarray:
        for conv in chain:
            value = run(conv, value)
        return value

    # -- building ------------------------------------------------------------------------

    def input(self, *shape: int, name: str = "x") -> str:
        self.specs.append(ValueSpec(name, shape))
        self.shapes[name] = shape
        return name

    def add_node(self, op, kind, inputs, payload, **more) -> str:
        name = more.pop("name", None) or f"{kind.lower()}{len(self.nodes)}"
        output = f"{name}:0"
        node = Node(name, op, tuple(inputs), output, kind=kind, **more)
        self.payload[name] = payload
        shaped = [np.zeros(self.shapes[value]) for value in inputs]
        self.shapes[output] = self._step(node, shaped).shape
        shape = self.shapes[output] if self.known_shapes else None
        self.nodes.append(replace(node, shape=shape))
        return output

    def conv_node(self, value: str, conv: Conv, **more) -> str:
        kind, op = "Conv", "conv"
        if conv.transposed:
            kind, op = "ConvTranspose", "conv_transpose"
        elif not conv.kernel:
            kind, op = "Linear", "linear"
        weight = more.pop("weight", f"w{len(self.nodes)}")
        geometry = Geometry(
            conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.dilation,
            conv.groups, conv.bias is not None, None, None,
        )  # fmt: skip
        return self.add_node(op, kind, [value], conv, weight=weight, geometry=geometry, **more)

    def bn(self, value: str, affine: Affine, *, axis: int = 1, kind="BatchNorm", **more) -> str:
        return self.add_node("affine", kind, [value], affine, attrs={"axis": axis}, **more)

    def add(self, *values: str, coefficients=None, **more) -> str:
        scales = coefficients or (1.0,) * len(values)
        attrs = {"coefficients": scales} if coefficients else {}

        def total(*arrays):
            return sum(scale * array for scale, array in zip(scales, arrays, strict=True))

        return self.add_node("add", "Add", values, total, attrs=attrs, **more)

    def concat(self, *values: str, axis: int = 1, **more) -> str:
        def join(*arrays):
            return np.concatenate(arrays, axis=axis)

        return self.add_node("concat", "Concat", values, join, attrs={"axis": axis}, **more)

    def relu(self, value: str) -> str:
        return self.add_node("other", "Relu", [value], lambda x: np.maximum(x, 0))

    def identity(self, value: str) -> str:
        return self.add_node("identity", "Dropout", [value], lambda x: x)

    def transpose(self, value: str, perm: tuple[int, ...]) -> str:
        def permute(x):
            return np.transpose(x, perm)

        return self.add_node("transpose", "Transpose", [value], permute, attrs={"perm": perm})

    def reshape(self, value: str, *shape: int) -> str:
        ranks = (len(self.shapes[value]), len(shape))

        def turn(x):
            return x.reshape(shape)

        return self.add_node("reshape", "Reshape", [value], turn, attrs={"ranks": ranks})

    def pad(self, value: str, pads, constant=0.0) -> str:
        border = np.asarray(constant, dtype=np.float64)

        def pad(x):
            shape = [size + sum(pad) for size, pad in zip(x.shape, pads, strict=True)]
            out = np.empty(shape)
            out[:] = border.reshape(1, -1, *(1,) * (x.ndim - 2))
            inside = tuple(slice(a, a + n) for (a, _), n in zip(pads, x.shape, strict=True))
            out[inside] = x
            return out

        attrs = {"pads": pads, "mode": "constant", "value": constant}
        return self.add_node("pad", "Pad", [value], pad, attrs=attrs)

    def fill(self, value: str, axis: int, begin, end, constant) -> str:
        border = np.asarray(constant, dtype=np.float64).reshape(1, -1, 1, 1)

        def fill(x):
            out = x.copy()
            index = [slice(None)] * x.ndim
            index[axis] = slice(begin, end)
            out[tuple(index)] = np.broadcast_to(border, (1, x.shape[1], 1, 1))
            return out

        attrs = {"axis": axis, "begin": begin, "end": end, "value": constant}
        return self.add_node("fill", "SetItem", [value], fill, attrs=attrs)

    def pool(
        self,
        value: str,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        *,
        ceil=False,
        include=True,
    ) -> str:
        def pool(x):
            tensor = torch.tensor(x)
            return F.avg_pool2d(tensor, kernel, stride, padding, ceil, include).numpy()

        attrs = {
            "kind": "average", "kernel": (kernel, kernel), "stride": (stride, stride),
            "padding": ((padding, padding),) * 2, "dilation": (1, 1), "ceil_mode": ceil,
            "count_include_pad": include,
        }  # fmt: skip
        return self.add_node("pool", "AveragePool", [value], pool, attrs=attrs)

    # -- judging -------------------------------------------------------------------------

    def count(self) -> int:
        """The convs that are left, merged ones included."""
        ops = ("conv", "conv_transpose", "linear")
        return sum(node.op in ops or node.kind == "merged" for node in self.nodes)


def assert_fused(net: Toy, tolerance: float = 1e-10):
    """Fuse; the result computes the same. Returns it, what was merged and what was refused."""
    from dacconv.fusions import fuse

    made, fused, refusals = fuse(net)
    for result, expected in zip(made.run(), net.run(), strict=True):
        assert result.shape == expected.shape
        scale = np.abs(expected).max(initial=1e-30)
        assert np.abs(result - expected).max(initial=0.0) <= tolerance * scale
    return made, fused, {refusal.node: refusal.reason for refusal in refusals}
