"""Which tensors of a state dict are convs, judged by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch

from dacconv.formats.torch.convs import weight_problem
from dacconv.graph.types import Geometry, Node

Group: TypeAlias = dict[str, torch.Tensor]
"""The tensors of one layer by the last part of their keys: ``weight``, ``bias``, ..."""

_TRANSPOSED = re.compile(
    r"(^|[._])(up\d*|ups|up_?(samp|conv|block|scal)\w*|de_?conv\w*|\w*transpose\w*|conv_?t\d*|"
    r"t_?conv\w*|trans_?conv\w*)([._]|$)",
    re.IGNORECASE,
)
_IMAGES = (1, 3, 4)
_TOP = "(top)"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def read_nodes(
    state: Mapping[str, Any], prefix: str, vouched: Sequence[str], *, ordered: bool = True
) -> list[Node]:
    """A node per layer, in the order of the file: convs, the unsure ones with their reasons.

    A conv is sure where the layers before it in the file can make as many channels as it
    takes (one of them, or a sum), or where it is the first and takes an image; unless its
    name, bias or kernel suggests another operator. ``vouched`` globs of names settle doubts.
    Without ``ordered``, as in safetensors that sort by name, "before" means anywhere.
    """
    nodes: list[Node] = []
    groups = _groups(state, prefix)
    reachable = 1  # bit c is set where earlier convs can make c channels between them
    if not ordered:
        for group in groups.values():
            if _is_conv(group):
                reachable |= reachable << int(group["weight"].shape[0])
    tied: dict[tuple[Any, ...], str] = {}
    first = True
    for name, group in groups.items():
        if not _is_conv(group):
            nodes.append(_other(name, group))
            continue
        weight = group["weight"]
        if not ordered:
            first = int(weight.shape[1]) in _IMAGES[1:]
        doubt = _doubt(name, group, first, reachable)
        if any(fnmatchcase(name, glob) for glob in vouched):
            doubt = None
        problem, identity = weight_problem(weight), name
        if not name:
            problem = "the file is this one layer, with no module around it"
        if problem is None:
            seen = (weight.data_ptr(), tuple(weight.shape), weight.stride())
            identity = tied.setdefault(seen, name)
        nodes.append(_conv(name or _TOP, group, problem or doubt, identity))
        first = False
        if ordered:
            reachable |= reachable << int(weight.shape[0])
    return nodes


def _is_conv(group: Group) -> bool:
    weight = group.get("weight")
    return weight is not None and weight.ndim == 4 and weight.is_floating_point()


def _groups(state: Mapping[str, Any], prefix: str) -> dict[str, Group]:
    """The tensors by layer, layers in the order of their first tensor."""
    groups: dict[str, Group] = {}
    for key, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            name, _, leaf = key.removeprefix(prefix).rpartition(".")
            groups.setdefault(name, {})[leaf] = tensor
    return groups


def _doubt(name: str, group: Group, first: bool, reachable: int) -> str | None:
    """Why the weights alone do not show that this is a plain conv; None where they do."""
    out, channels, *kernel = group["weight"].shape
    bias = group.get("bias")
    doubt = None
    if _TRANSPOSED.search(name):
        doubt = "this is a transposed conv, as its name suggests"
    elif bias is not None and tuple(bias.shape) != (out,):
        doubt = "this is a transposed conv, as the length of its bias suggests"
    elif channels == 1 and not first:
        doubt = "this is a depthwise conv"
    elif first and channels not in _IMAGES:
        doubt = f"this is a plain conv: it comes first but takes {channels} channels"
    elif not first and not (reachable >> channels) & 1:
        doubt = f"this is grouped or transposed: nothing before it makes {channels} channels"
    elif not first and bias is None and kernel in ([2, 2], [4, 4]):
        doubt = f"this is a transposed conv, as its {kernel[0]}x{kernel[1]} kernel may suggest"
    if doubt is None:
        return None
    told = f"cannot tell from the weights alone whether {doubt}"
    return f"{told}; name it with --layers to vouch for it"


def _conv(name: str, group: Group, skip: str | None, identity: str) -> Node:
    weight, bias = group["weight"], group.get("bias")
    out, channels, *kernel = (int(size) for size in weight.shape)
    geometry = Geometry(
        in_channels=channels,
        out_channels=out,
        kernel=tuple(kernel),
        stride=(1, 1),
        dilation=(1, 1),
        groups=1,
        bias=bias is not None,
        input_size=None,
        output_size=None,
        itemsize=weight.element_size(),
    )
    return Node(
        name=name,
        op="conv",
        inputs=(f"{name}:in",),
        output=f"{name}:0",
        kind="conv",
        weight=f"{identity}.weight",
        geometry=geometry,
        skip=skip,
        params=sum(t.numel() for t in group.values() if t.is_floating_point()),
    )


def _other(name: str, group: Group) -> Node:
    """A layer that is no 2-D conv; its running statistics are no parameters."""
    params = sum(
        t.numel() for leaf, t in group.items() if t.is_floating_point() and leaf not in _STATISTICS
    )
    weight = group.get("weight")
    if "running_mean" in group:
        kind = "BatchNorm"
    else:
        kind = "tensors" if weight is None else f"{weight.ndim}-D weight"
    label = name or _TOP
    return Node(label, "other", (f"{label}:in",), f"{label}:0", kind=kind, params=params)
