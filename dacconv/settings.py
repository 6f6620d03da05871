"""Settings of a conversion, from a TOML file and from the command line."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacconv.conversion.gates import Gates, parse_share
from dacconv.errors import UsageError

if TYPE_CHECKING:  # plain DAC does without, and starts sooner for it
    from dacconv.calibration.inputs.pixels import InputOptions

BUDGET_KEYS = ("macs", "params", "latency")
RANK_KEYS = ("rank", "ranks", "energy", "plan", "from_sweep", *BUDGET_KEYS)
RANGE_KEYS = ("first_k", "last_k")
SWITCHES = ("verify", "fuse")
"""Options that can be switched off as well as on."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what a conversion does, and nothing about where it writes.

    The names are those of the command line's options, with underscores.
    """

    rank: int | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    energy: float | None = None
    energy_over: str = "mean"
    macs: str | None = None
    params: str | None = None
    latency: str | None = None
    plan: str | None = None
    from_sweep: str | None = None
    pick: str | None = None
    first_k: int | None = None
    last_k: int | None = None
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    allow_costlier: bool = False
    fuse: bool = True
    kernel_scale: str = "own"
    form: str | None = None
    tune: bool = False
    target: str | None = None
    timings: str | None = None
    calibrate: str | None = None
    calibration_images: int | None = None
    input_mean: str | None = None
    input_std: str | None = None
    input_range: str | None = None
    input_layout: str | None = None
    input_order: str = "rgb"
    device: str | None = None
    arch: str | None = None
    arch_arg: tuple[str, ...] = ()
    key: str | None = None
    input_shape: tuple[str, ...] = ()
    trust_pickle: bool = False
    verify: bool = True
    samples: int = 8
    seed: int = 0
    threads: int | None = None
    max_error: float | None = None
    min_saving: str | None = None
    min_agreement: str | None = None

    def gates(self) -> Gates:
        """The gates as numbers; UsageError for one that is none."""
        saving, agreement = self.min_saving, self.min_agreement
        if self.max_error is not None and not self.max_error >= 0:
            raise UsageError(f"{self.max_error} is not an error above 0", where="--max-error")
        return Gates(
            max_error=self.max_error,
            min_saving=None if saving is None else parse_share(saving, "--min-saving"),
            min_agreement=None if agreement is None else parse_share(agreement, "--min-agreement"),
        )

    def budget(self, name: str) -> float | None:
        """The budget of that name as a share; UsageError for one that is none."""
        text = getattr(self, name)
        return None if text is None else parse_share(str(text), f"--{name}")

    @property
    def calibration(self) -> str:
        """How to calibrate: what was asked for, else ``auto`` with a budget and ``none``."""
        budgeted = any(getattr(self, name) is not None for name in BUDGET_KEYS)
        return self.calibrate or ("auto" if budgeted else "none")

    def input_options(self) -> InputOptions:
        """What the user says about the model's input; UsageError where it makes no sense."""
        from dacconv.calibration.inputs.pixels import InputOptions

        for name, value, known in (
            ("layout", self.input_layout, ("nchw", "nhwc")),
            ("order", self.input_order, ("rgb", "bgr")),
        ):
            if value is not None and value not in known:
                raise UsageError(
                    f"'{value}' is not one of {', '.join(known)}", where=f"--input-{name}"
                )
        span = parse_numbers(self.input_range, "--input-range")
        if span is not None and (len(span) != 2 or span[0] == span[1]):
            raise UsageError("is not LOW,HIGH, as in 0,255", where="--input-range")
        return InputOptions(
            mean=parse_numbers(self.input_mean, "--input-mean"),
            std=parse_numbers(self.input_std, "--input-std"),
            range=None if span is None else (span[0], span[1]),
            layout=self.input_layout,
            order=self.input_order,
            images=self.calibration_images,
        )

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults, for the provenance."""
        default = Settings()
        return {
            f.name: _plain(getattr(self, f.name))
            for f in fields(self)
            if getattr(self, f.name) != getattr(default, f.name)
        }


def settings(config: Path | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a TOML file, with those that the command line gives put over them.

    ``given`` holds None for what was not given. A way to choose ranks on the command line
    replaces the one of the file, and so do --first-k and --last-k.
    """
    values = read_toml(config) if config else {}
    mine = {key: value for key, value in given.items() if value not in (None, (), {}, [])}
    return Settings(**overlaid(values, mine))


def overlaid(values: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``mine`` over them; one way to choose ranks or layers replaces another."""
    for group in (RANK_KEYS, RANGE_KEYS):
        if any(key in mine for key in group):
            values = {key: value for key, value in values.items() if key not in group}
    return {**values, **mine}


def from_options(config: Path | None, options: Mapping[str, Any]) -> Settings:
    """The settings that a command line gives; ``options`` may hold others, which are not used.

    None, an empty list and a flag that is off (but not ``--no-...``) are not given.
    """
    known = {f.name for f in fields(Settings)}
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known or value is None or (value is False and name not in SWITCHES):
            continue
        given[name] = _CONVERT.get(name, _plain_option)(value)
    return settings(config, given)


def read_toml(path: Path) -> dict[str, Any]:
    """Read settings from TOML; keys are the names of the options, ``last-k`` or ``last_k``.

    Raises:
        UsageError: not TOML, an unknown key (names the nearest), a value of a wrong type.
    """
    data = load_toml(path)
    check_known(data, setting_names(), str(path))
    return entries(data, str(path))


def load_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds; UsageError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"not readable as TOML: {error}", where=str(path)) from error


def setting_names() -> tuple[str, ...]:
    """The names of all settings, as a file spells them."""
    return tuple(f.name.replace("_", "-") for f in fields(Settings))


def check_known(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise UsageError, with the nearest known one, for a key that is not known."""
    for key in data:
        if key.replace("_", "-") not in known:
            near = get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.0)[0]
            raise UsageError(f"unknown key '{key}'", where=where, hint=f"the nearest is '{near}'")


def entries(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings as TOML has them, as the fields of :class:`Settings`."""
    names = {key: key.replace("-", "_") for key in data}
    return {name: _checked(name, data[key], f"{where}, {key}") for key, name in names.items()}


def parse_ranks(text: str) -> dict[str, int]:
    """``NAME=R,NAME=R`` as a mapping; UsageError where it is not that."""
    ranks: dict[str, int] = {}
    for part in text.split(","):
        name, equals, rank = part.rpartition("=")
        if not equals or not name.strip():
            raise UsageError(f"'{part}' is not NAME=RANK", where="--ranks")
        try:
            ranks[name.strip()] = int(rank)
        except ValueError as error:
            raise UsageError(f"'{rank}' is not a whole number", where=f"--ranks {name}") from error
    return ranks


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers; UsageError where it is not that."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"'{text}' is not a list of numbers", where=option) from error
    if not all(math.isfinite(value) for value in values):
        raise UsageError(f"'{text}' holds a number that is not finite", where=option)
    return values


def parse_counts(text: str | None, option: str) -> tuple[int, ...]:
    """``1,8`` as whole numbers above 0; nothing for None; UsageError where it is not that."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"'{text}' is not a list of whole numbers above 0", where=option, hint="as in 1,8"
        )
    return tuple(int(part) for part in parts)


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``[name:]1,3,224,224`` as input name -> shape; the name ``""`` is the first input."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise UsageError(
                f"'{text}' is not a shape",
                where="--input-shape",
                hint="write sizes above 0, as in 1,3,224,224 or image:1,3,224,224",
            )
        shapes[name] = shape
    return shapes


def parse_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """``k=v`` as keyword arguments; v is read as TOML (number, true, "text", list) or text."""
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"'{text}' is not NAME=VALUE", where="--arch-arg")
        try:
            arguments[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            arguments[name.strip()] = {"True": True, "False": False, "None": None}.get(value, value)
    return arguments


def _checked(name: str, value: object, where: str) -> Any:
    """A TOML value as the type that the setting has."""
    if name in ("layers", "skip", "arch_arg", "input_shape"):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise UsageError("is not text or a list of texts", where=where)
        return tuple(items)
    if name == "ranks":
        if isinstance(value, str):
            return parse_ranks(value)
        if not isinstance(value, dict):
            raise UsageError("is not a table of layer = rank", where=where)
        return value
    shares = ("min_saving", "min_agreement", *BUDGET_KEYS)
    if name in shares and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if name in ("input_mean", "input_std", "input_range") and not isinstance(value, str):
        return ",".join(map(str, value if isinstance(value, list) else [value]))
    kinds = _KINDS[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UsageError(f"{value!r} is not {' or '.join(k.__name__ for k in kinds)}", where=where)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{value} is not a finite number", where=where)
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain_option(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


_CONVERT: dict[str, Callable[[Any], Any]] = {"ranks": parse_ranks, "plan": str, "timings": str}
"""Options whose text is something else as a setting."""


_KINDS: dict[str, tuple[type, ...]] = {
    "rank": (int,),
    "energy": (float, int),
    "energy_over": (str,),
    "macs": (str,),
    "params": (str,),
    "latency": (str,),
    "plan": (str,),
    "from_sweep": (str,),
    "pick": (str,),
    "first_k": (int,),
    "last_k": (int,),
    "allow_costlier": (bool,),
    "fuse": (bool,),
    "kernel_scale": (str,),
    "form": (str,),
    "tune": (bool,),
    "target": (str,),
    "timings": (str,),
    "calibrate": (str,),
    "calibration_images": (int,),
    "input_mean": (str,),
    "input_std": (str,),
    "input_range": (str,),
    "input_layout": (str,),
    "input_order": (str,),
    "device": (str,),
    "arch": (str,),
    "key": (str,),
    "trust_pickle": (bool,),
    "verify": (bool,),
    "samples": (int,),
    "seed": (int,),
    "threads": (int,),
    "max_error": (float, int),
    "min_saving": (str,),
    "min_agreement": (str,),
}
