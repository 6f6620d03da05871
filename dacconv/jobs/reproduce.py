"""Converting a file again as its record says, and comparing the result with the file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dacconv import __version__
from dacconv.calibration.prepare import SOURCES
from dacconv.conversion import pipeline
from dacconv.conversion.pipeline import Conversion
from dacconv.conversion.weight_comparison import compare_weights
from dacconv.errors import FormatError, UsageError
from dacconv.formats import read_record
from dacconv.formats.base import Model, Record
from dacconv.formats.sniff import kind
from dacconv.graph.types import Plan
from dacconv.jobs.decide import inputs_for_ranges
from dacconv.jobs.settings_file import entries, setting_names
from dacconv.jobs.write import open_with
from dacconv.planning.plans import plan_from_dict
from dacconv.settings import (
    OPENING,
    Outputs,
    Settings,
    check_known,
    option_text,
    overlaid,
)
from dacconv.support.files import Digest
from dacconv.support.progress import Progress, silent

RECORDED_SETTINGS = frozenset(
    {"method", "precision", "energy", "energy_over", "vbmf", "macs", "params", "latency",
     "allow_costlier",
     "fuse", "kernel_scale", "form", "calibrate", "calibration_images", "input_mean", "input_std",
     "input_range", "input_layout", "input_order", "device", "input_shape", "key", "seed"}
)  # fmt: skip
"""The recorded settings that are used: numbers, and names of choices. None of them names code to
run or a file to open. The ranks are in the recorded plan."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of converting again; ``problem`` is the reason if the models differ.

    ``exact`` is true if every byte is the same. Otherwise ``difference`` is the largest of
    the layers' ``|w - w'| / |w|``. ``version`` is that of the dacconv that wrote the file.
    """

    exact: bool
    version: str
    layers: int = 0
    difference: float = 0.0
    problem: str = ""

    def summary(self) -> str:
        """The outcome in a sentence."""
        if self.exact:
            return "reproduced, byte for byte"
        if self.version != __version__:
            origin = f"made by dacconv {self.version}, this is {__version__}"
        else:
            origin = "it may be from another machine or another version of numpy"
        if self.problem:
            note = f" ({origin})" if self.version != __version__ else ""
            return f"not reproduced: {self.problem}{note}"
        return (
            f"reproduced but for rounding: the weights of all {self.layers} layers are the same, "
            f"the largest relative difference is {self.difference:.2g}; the bytes differ ({origin})"
        )


def reproduce(
    original: Path, converted: Path, user: Mapping[str, Any], progress: Progress = silent
) -> Reproduction:
    """Convert ``original`` again as recorded in ``converted``, and compare the results.

    ``user`` are the user's own settings about opening the model and its inputs, which override
    the recorded ones. Settings that name code or files, or that trust a file, are never read from
    the record.

    Raises:
        FormatError: ``converted`` has no record of its conversion.
        UsageError: the record does not fit the original or this version of dacconv, or an option
            is missing that only the user can set.
    """
    record = read_record(converted, trust_pickle=bool(user.get("trust_pickle")))
    if record is None:
        raise FormatError(
            "has no record of its conversion",
            where=str(converted),
            hint="`dacconv convert` and `fuse` write one into their outputs",
        )
    version, digest = str(record.provenance["version"]), _digest(original)
    if digest != record.provenance["sha256"]:
        recorded = str(record.provenance["sha256"])[:64]
        problem = f"the original is another file: SHA-256 {digest}, but {recorded!a} is recorded"
        return Reproduction(False, version, problem=problem)
    settings = _settings(record, user, str(converted))
    model = open_with(original, settings)
    result = _converted(model, record, settings, str(converted), progress)
    if _same_bytes(result, converted):
        return Reproduction(True, version)
    weights = compare_weights(result.model, open_with(converted, settings))
    return Reproduction(False, version, weights.layers, weights.difference, weights.problem)


def _digest(original: Path) -> str:
    """The SHA-256 of the original and its external data.

    Only ONNX has external data, and opening an ONNX file runs no code; other files are not opened
    for it.
    """
    files: tuple[Path, ...] = (original,)
    if kind(original) == "onnx":
        files = open_with(original, Settings()).files
    return Digest(original).of(*files)


def _settings(record: Record, user: Mapping[str, Any], where: str) -> Settings:
    """The ``RECORDED_SETTINGS`` of a record, overridden by those of the user."""
    recorded = dict(record.provenance["options"])
    check_known(recorded, setting_names(), f"{where}, recorded options")
    _require_user_settings(recorded, user, where)
    values = {name: value for name, value in recorded.items() if name in RECORDED_SETTINGS}
    if values.get("calibrate") not in SOURCES:
        values.pop("calibrate", None)  # a path, which the user must name
    return Settings(**overlaid(entries(values, where), user))


def _require_user_settings(
    recorded: Mapping[str, Any], user: Mapping[str, Any], where: str
) -> None:
    """Raise UsageError where a recorded setting is missing that only the user may set."""
    needed = [name for name in ("arch", "arch_arg", "trust_pickle") if recorded.get(name)]
    if recorded.get("calibrate") not in (None, *SOURCES):
        needed.append("calibrate")
    missing = [name for name in needed if name not in user]
    if not missing:
        return
    text = ", ".join(f"{option_text(name)} {str(recorded[name])[:80]!a}" for name in missing)
    raise UsageError(
        f"the file records {text}, which is not read from a file for safety",
        where=where,
        hint=f"if you trust it, pass {' and '.join(map(option_text, missing))} yourself",
    )


def _converted(
    model: Model, record: Record, settings: Settings, where: str, progress: Progress
) -> Conversion:
    """The conversion, repeated, with the recorded provenance."""
    plan = _plan(record, where)
    if plan.choices:  # for its errors only: the reasons must remain those of the record
        pipeline.bind_plan(model, plan, where=where, allow_costlier=True, fuse=settings.fuse)
    calibrated = None
    if settings.calibration != "none" and plan.choices:
        options = settings.calibration_options
        calibrated, _ = pipeline.calibrate(model, options, settings.split_options, progress)
    result = pipeline.convert(
        model,
        plan,
        settings.split_options,
        calibrated=calibrated,
        inputs=inputs_for_ranges(model, settings, plan, calibrated, progress),
        recorded=record.provenance["options"],
        progress=progress,
    )
    origin = result.report.provenance
    if origin is None:
        return result
    version, source = (str(record.provenance[key]) for key in ("version", "source"))
    origin = replace(origin, version=version, source=source)
    return replace(result, report=replace(result.report, provenance=origin))


def _plan(record: Record, where: str) -> Plan:
    """The recorded plan with its notes, which ``plan_from_dict`` does not read."""
    plan = plan_from_dict(record.plan, where)
    notes = {entry["name"]: str(entry.get("note", "")) for entry in record.plan["layers"]}
    choices = tuple(replace(choice, note=notes[choice.layer]) for choice in plan.choices)
    return replace(plan, choices=choices)


def _same_bytes(result: Conversion, converted: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        written = result.save(Path(folder) / converted.name)
        pairs = [(path, converted.with_name(path.name)) for path in written]
        return all(
            old.is_file() and Digest(new).of(new) == Digest(old).of(old) for new, old in pairs
        )


def opening(settings: Settings) -> dict[str, Any]:
    """The settings of a command for opening a model, and the path of its calibration inputs."""
    default = Settings()
    names = [f.name for f, declaration in Settings.declared() if declaration.heading == OPENING]
    names.append("calibrate")
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def require_alone(settings: Settings, outputs: Outputs) -> None:
    """Raise UsageError for options about outputs, which ``--reproduce`` does not compare."""
    others = [option_text(kind) for kind in outputs.reports]
    compared = ("max_error", "min_agreement", "samples", "seed")
    default = Settings()
    others += [option_text(n) for n in compared if getattr(settings, n) != getattr(default, n)]
    if others:
        raise UsageError(f"--reproduce runs no model; it excludes {', '.join(others)}")
