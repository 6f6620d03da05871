"""Which tensors of a state dict are convs, judged by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch

from dacconv.formats.torch.convs import weight_problem
from dacconv.graph.types import Geometry, Node

Group: TypeAlias = dict[str, torch.Tensor]
"""The tensors of one layer by the last part of their keys: ``weight``, ``bias``, ..."""

Template: TypeAlias = tuple[str | None, ...]
"""The parts of a dotted name, one of them left open."""

_TRANSPOSED = re.compile(
    r"(^|[._])(up\d*|ups|up_?(samp|conv|block|scal)\w*|de_?conv\w*|\w*transpose\w*|conv_?t\d*|"
    r"t_?conv\w*|trans_?conv\w*)([._]|$)",
    re.IGNORECASE,
)
_DECODER = re.compile(r"(^|[._])(dec\d*|decod\w*|un_?pool\w*)([._]|$)", re.IGNORECASE)
_CONV = re.compile(r"(^|[._])\w*conv\w*$", re.IGNORECASE)
_HEAD = re.compile(r"(^|[._])(fc\d*|head|classifier|linear\d*|logits)([._]\d+)?$", re.IGNORECASE)
_IMAGES = (1, 3, 4)
_TOP = "(top)"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_IN_A_ROW = 8
_OF_A_CLASS = 5
"""Transposed convs double the image as a rule, so nobody has so many of one shape in a row."""


def read_nodes(
    state: Mapping[str, Any], prefix: str, vouched: Sequence[str], *, ordered: bool = True
) -> list[Node]:
    """A node per layer, in the order of the file: convs, the unsure ones with their reasons.

    A conv is sure where the layers before it in the file can make as many channels as it
    takes (one of them, or a sum), or where it is the first and takes an image; unless its
    name, bias or kernel suggests another operator, or it has as many inputs as outputs and
    might as well be a transposed conv. ``vouched`` globs of names settle doubts.
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
    plain = _plain_convs(groups, ordered=ordered)
    following = dict(zip(groups, [*list(groups.values())[1:], {}], strict=True))
    first = True
    for name, group in groups.items():
        if not _is_conv(group):
            nodes.append(_other(name, group))
            continue
        weight = group["weight"]
        if not ordered:
            first = int(weight.shape[1]) in _IMAGES[1:]
        doubt = _doubt(name, group, first, reachable)
        if doubt is None and not first and name not in plain:
            doubt = _may_be_transposed(group, following[name] if ordered else {})
        if any(fnmatchcase(name, glob) for glob in vouched):
            doubt = None
        problem, identity = weight_problem(weight), name
        if not name:
            problem = "the file is this one layer, with no module around it"
        if problem is None:
            key = (weight.data_ptr(), tuple(weight.shape), weight.stride())
            identity = tied.setdefault(key, name)
        reason = problem or (doubt and f"{_UNSURE} {doubt}; {_SETTLED_BY}")
        nodes.append(_conv(name or _TOP, group, reason, identity))
        first = False
        if ordered:
            reachable |= reachable << int(weight.shape[0])
    return nodes


_UNSURE = "cannot tell from the weights alone whether"
_SETTLED_BY = "--arch tells it, or name it with --layers to vouch for it"


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
    if _TRANSPOSED.search(name):
        return "this is a transposed conv, as its name suggests"
    if bias is not None and tuple(bias.shape) != (out,):
        return "this is a transposed conv, as the length of its bias suggests"
    if channels == 1 and not first:
        return "this is a depthwise conv"
    if first and channels not in _IMAGES:
        return f"this is a plain conv: it comes first but takes {channels} channels"
    if not first and not (reachable >> channels) & 1:
        return f"this is grouped or transposed: nothing before it makes {channels} channels"
    if not first and bias is None and kernel in ([2, 2], [4, 4]):
        return f"this is a transposed conv, as its {kernel[0]}x{kernel[1]} kernel may suggest"
    return None


def _may_be_transposed(group: Group, following: Group) -> str | None:
    """Why a conv whose channels fit may be a transposed conv; None where it cannot.

    The weight of a transposed conv is stored as inputs x outputs, that of a conv the other way
    round. A bias, or the BatchNorm that follows, has the length of the outputs.
    """
    weight = group["weight"]
    out, channels, *kernel = weight.shape
    if set(kernel) == {1}:
        return None
    if out == channels:
        return f"this is a transposed conv: it has {channels} inputs and as many outputs"
    mean = following.get("running_mean")
    if "bias" not in group and mean is not None and tuple(mean.shape) == (channels,):
        return "this is a transposed conv, as the length of the BatchNorm after it suggests"
    return None


def _plain_convs(groups: Mapping[str, Group], *, ordered: bool) -> set[str]:
    """The convs that cannot be transposed, whatever their shapes: files and names show it.

    Those of a classifier, which ends in a linear layer and enlarges nothing; those that are
    called conv; and those of a shape that a loop has made so often that the image would have
    no end. The last of such single layers may be something else, unless the row goes on with a
    conv of the same odd kernel: a transposed conv that doubles the image mostly has an even one.
    """
    convs = [name for name, group in groups.items() if _is_conv(group)]
    if any(_TRANSPOSED.search(name) or _DECODER.search(name) for name in convs):
        convs = [n for n in convs if not (_TRANSPOSED.search(n) or _DECODER.search(n))]
    elif _ends_in_linear(groups, ordered=ordered):
        return set(convs)
    plain = {name for name in convs if _CONV.search(name)}
    runs: dict[tuple[Template, torch.Size, bool], dict[int, str]] = {}
    for name in convs:
        shape, has_bias = groups[name]["weight"].shape, "bias" in groups[name]
        for number, template in _templates(name):
            runs.setdefault((template, shape, has_bias), {})[number] = name
    for (template, shape, _), names in runs.items():
        single = template[-1] is None
        for row in _rows(sorted(names)):
            plain.update(names[number] for number in row if len(row) >= _OF_A_CLASS and not single)
            if single and len(row) >= _IN_A_ROW:
                number = 2 * row[-1] - row[-2]
                after = groups.get(".".join(str(number) if p is None else p for p in template), {})
                goes_on = _is_conv(after) and after["weight"].shape[1:] == shape[1:]
                odd = all(size % 2 for size in shape[2:])
                plain.update(names[n] for n in (row if goes_on and odd else row[:-1]))
    return plain


def _templates(name: str) -> Iterator[tuple[int, Template]]:
    """Each number in a dotted name, and the name without it."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdecimal():
            yield int(part), (*parts[:at], None, *parts[at + 1 :])


def _rows(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers in ascending order, cut where the step from one to the next changes."""
    rows: list[list[int]] = []
    for number in numbers:
        row = rows[-1] if rows else []
        if row and (len(row) == 1 or number - row[-1] == row[-1] - row[-2]):
            row.append(number)
        else:
            rows.append([number])
    return rows


def _ends_in_linear(groups: Mapping[str, Group], *, ordered: bool) -> bool:
    """Whether the last layer is a linear one; going by names where the file is sorted by them."""
    weights = {name: g["weight"] for name, g in groups.items() if "weight" in g}
    matrices = [name for name, weight in weights.items() if weight.ndim == 2]
    if not ordered:
        return any(_HEAD.search(name) for name in matrices)
    last = [name for name, weight in weights.items() if weight.ndim >= 2]
    return bool(last) and last[-1] in matrices


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
        known=False,
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
