"""State dicts with their architecture: loaded strictly, written back in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from dacconv.errors import UsageError
from dacconv.formats.base import LoadOptions
from dacconv.formats.torch.arch import build
from dacconv.formats.torch.files.entries import best_prefix
from dacconv.formats.torch.files.record import make_record
from dacconv.formats.torch.members import named_modules, own_methods, submodule
from dacconv.formats.torch.module.blocks import describe_replaced
from dacconv.formats.torch.module.model import TracedModel, require_tree
from dacconv.formats.torch.module.surgery import names_of
from dacconv.formats.torch.state.file import StateFile
from dacconv.formats.torch.state.specs import Facts, folded, layer_facts, over
from dacconv.graph.types import Plan, Rewrite
from dacconv.support.user_code import user_code

ARCH_HINT = "is it the right architecture, with the right arguments (--arch-arg)?"


@dataclass(frozen=True, eq=False)
class StateModel(TracedModel):
    """A state dict with its architecture. Module name + ``prefix`` is the key in the file.

    ``originals`` has the geometry of the layers of the architecture as the user's code made it.
    """

    format: ClassVar[str] = "state_dict"

    source: StateFile = field(kw_only=True)
    prefix: str = field(default="", kw_only=True)
    originals: Mapping[str, Facts] = field(default_factory=dict, kw_only=True)

    def save(self, path: Path, *, provenance: Mapping[str, Any], plan: Plan) -> tuple[Path, ...]:
        """Write the container that came in, with the converted weights in their places."""
        earlier = self.source.record or {"modules": {}}
        modules = self._specs(earlier["modules"])
        replaced = {name: self.originals[name] for name in modules if name in self.originals}
        record = make_record(plan, provenance, modules, self.source.entry, replaced)
        if (known := self._known_network()) is not None:
            record["arch"] = known
        return self.source.save(path, self._changed(), record)

    def _known_network(self) -> dict[str, Any] | None:
        """The network of ``dacconv.zoo`` that the file can be opened with again."""
        package, _, name = (self.options.arch or "").partition(":")
        if package != "dacconv.zoo":
            return None
        return {"name": name, "arguments": dict(self.options.arch_args)}

    def _specs(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """What takes the place of which module, this time and at earlier conversions."""
        inner = dict(earlier)  # by the names in the original, which a Sequential hides
        for path, stays in self.kept.items():
            for index, old in stays.items():
                here = f"{path}.{index}"
                inner |= {
                    f"{path}.{old}{name[len(here) :]}": describe_replaced(
                        self.module, name, self.kept, inner
                    )
                    for name in self.edited
                    if name == here or name.startswith(f"{here}.")
                }
        new = {
            name: describe_replaced(self.module, name, self.kept, inner)
            for name in self._outermost()
        }
        inside = tuple(f"{name}." for name in new)
        before = {n: spec for n, spec in earlier.items() if not n.startswith(inside)}
        new = {n: over(spec, before[n]) if n in before else spec for n, spec in new.items()}
        return folded(before | new)

    def rewrite(self, edits: Sequence[Rewrite]) -> Self:
        """As every module, with the new weights rounded to the dtype that the file has."""
        made = super().rewrite(edits)
        for prefix, new in made._changed().items():
            module = submodule(made.module, prefix[len(self.prefix) : -1])
            for key, parameter in module.named_parameters():
                parameter.data = new[prefix + key].to(parameter.dtype)
        return made

    def side_files(self, path: Path) -> tuple[Path, ...]:
        """The plan, where the file has no room for it."""
        return self.source.side_files(path)

    def _outermost(self) -> list[str]:
        """The replaced modules, without those inside another one."""
        return [
            name
            for name in sorted(self.edited)
            if not any(name.startswith(f"{other}.") for other in self.edited)
        ]

    def _changed(self) -> dict[str, dict[str, torch.Tensor]]:
        """The new entries of the replaced layers, in the dtype that the file has."""
        made: dict[int, torch.Tensor] = {}
        changed: dict[str, dict[str, torch.Tensor]] = {}
        for canonical in self._outermost():
            module = submodule(self.module, canonical)
            for name in names_of(self.module, canonical):
                prefix = f"{self.prefix}{name}."
                like = self._like(prefix)
                entries: dict[str, torch.Tensor] = {}
                for key, value in module.state_dict(keep_vars=True).items():
                    if id(value) not in made:
                        real = like is not None and value.is_floating_point()
                        dtype = like.dtype if real and like is not None else value.dtype
                        made[id(value)] = value.detach().to(dtype)
                    entries[prefix + key] = made[id(value)]
                changed[prefix] = entries
        return changed

    def _like(self, prefix: str) -> torch.Tensor | None:
        """The tensor of the file whose dtype the new entries under a prefix take."""
        weight = self.source.state.get(f"{prefix}weight")
        if isinstance(weight, torch.Tensor):
            return weight
        inside = (v for k, v in self.source.state.items() if k.startswith(prefix))
        floats = (v for v in inside if isinstance(v, torch.Tensor) and v.is_floating_point())
        return next(floats, None)


Place = Callable[[nn.Module, StateFile], Iterable[object]]
"""Puts the layers of an earlier conversion into the architecture, one after the other."""


def load_state(
    source: StateFile, options: LoadOptions, place: Place, recognised: tuple[str, ...] = ()
) -> StateModel:
    """Build the architecture and load the state dict into it, strictly.

    A state dict that was converted before gets its layers by ``place``. ``recognised`` says in the
    report which network was recognised, if one was.

    Raises:
        UsageError: the factory fails, or its keys and the file's are not the same.
    """
    path = source.checkpoint.path
    module = build(options.arch or "", options.arch_args)
    require_tree(module, path)
    originals = {
        name: geometry
        for name, layer in named_modules(module)
        if (geometry := layer_facts(layer)) is not None
    }
    for _ in place(module, source):
        pass
    prefix = fill(module, source.state, str(path), f"--arch {options.arch}")
    left = [key for key in source.state if not key.startswith(prefix)]
    facts = [*recognised, *source.facts()]
    if left:
        facts.append(f"entries outside '{prefix}' are kept as they are: {', '.join(left[:4])}")
    return StateModel(
        path,
        options,
        module,
        facts=tuple(facts),
        source=source,
        prefix=prefix,
        originals=originals,
    )


def fill(
    module: nn.Module, state: Mapping[str, Any], where: str, what: str, hint: str = ARCH_HINT
) -> str:
    """Load a state dict into a module, strictly; return the prefix that its keys have.

    BatchNorm's ``num_batches_tracked``, which old files lack, may be missing.

    Raises:
        UsageError: missing, unexpected or differently shaped entries, which it names.
    """
    with user_code("its state_dict()", what), own_methods(module):
        wanted = module.state_dict()
    prefix = best_prefix(state, wanted)
    have = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    missing = [key for key in wanted if key not in have]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    unexpected = [key for key in have if key not in wanted]
    shapes = [
        f"{key} is {_shape(have[key])}, not {_shape(wanted[key])}"
        for key in wanted
        if key in have and _shape(have[key]) != _shape(wanted[key])
    ]
    if missing or unexpected or shapes:
        told = "; ".join(
            _listed(*group)
            for group in (
                ("missing from the file", missing),
                ("not in the architecture", unexpected),
                ("of another shape", shapes),
            )
            if group[1]
        )
        raise UsageError(
            f"the file does not fit {what}: {told}",
            where=where,
            hint=hint,
        )
    for key in wanted.keys() - have.keys():
        have[key] = wanted[key]
    with user_code("loading the state dict", where, f"into {what}"), own_methods(module):
        module.load_state_dict(have, strict=True)
    return prefix


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "scalar" if isinstance(value, torch.Tensor) else ""


def _listed(what: str, keys: Sequence[str], most: int = 4) -> str:
    more = f", ... ({len(keys)} in all)" if len(keys) > most else ""
    return f"{what}: {', '.join(keys[:most])}{more}"
