"""Whether a converted file is what its original and the plan in it give."""

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

TAKEN_FROM_RECORD = frozenset(
    {"method", "energy", "energy_over", "macs", "params", "latency", "allow_costlier", "fuse",
     "kernel_scale", "form", "calibrate", "calibration_images", "input_mean", "input_std",
     "input_range", "input_layout", "input_order", "device", "input_shape", "key", "seed"}
)  # fmt: skip
"""The recorded settings that are obeyed: numbers, and words of which each has one meaning. None
of them names code to run or a file to open. The ranks are in the recorded plan."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of converting again; ``problem`` says why it is not the same, if it is not.

    ``exact`` is true where every byte is the same. Otherwise ``difference`` is the largest of
    the layers' ``|w - w'| / |w|``. ``version`` is that of the dacconv that made the file.
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
            made = f"made by dacconv {self.version}, this is {__version__}"
        else:
            made = "perhaps another machine or another numpy made it"
        if self.problem:
            other = f" ({made})" if self.version != __version__ else ""
            return f"not reproduced: {self.problem}{other}"
        return (
            f"reproduced but for rounding: the weights of all {self.layers} layers are the same, "
            f"the largest relative difference is {self.difference:.2g}; the bytes differ ({made})"
        )


def reproduce(
    original: Path, converted: Path, given: Mapping[str, Any], progress: Progress = silent
) -> Reproduction:
    """Convert ``original`` again as ``converted`` says it was, and compare.

    ``given`` are the user's own settings about opening the model and its inputs. They win over
    the recorded ones. What names code, files or trust is only ever taken from ``given``.

    Raises:
        FormatError: ``converted`` does not say how it was made.
        UsageError: what it says does not fit the original or this version of dacconv, or needs
            an option that the user must give.
    """
    record = read_record(converted, trust_pickle=bool(given.get("trust_pickle")))
    if record is None:
        raise FormatError(
            "does not say how it was made",
            where=str(converted),
            hint="`dacconv convert` and `fuse` write that into their outputs",
        )
    version, digest = str(record.provenance["version"]), _digest(original)
    if digest != record.provenance["sha256"]:
        recorded = str(record.provenance["sha256"])[:64]
        problem = f"the original is another file: SHA-256 {digest}, but {recorded!a} is recorded"
        return Reproduction(False, version, problem=problem)
    settings = _settings(record, given, str(converted))
    model = open_with(original, settings)
    result = _converted(model, record, settings, str(converted), progress)
    if _same_bytes(result, converted):
        return Reproduction(True, version)
    weights = compare_weights(result.model, open_with(converted, settings))
    return Reproduction(False, version, weights.layers, weights.difference, weights.problem)


def _digest(original: Path) -> str:
    """The SHA-256 of the original and its external data.

    Only ONNX has external data, and opening an ONNX file runs nothing; other files are not
    opened for it.
    """
    files: tuple[Path, ...] = (original,)
    if kind(original) == "onnx":
        files = open_with(original, Settings()).files
    return Digest(original).of(*files)


def _settings(record: Record, given: Mapping[str, Any], where: str) -> Settings:
    """The recorded settings that are numbers and plain words, under those that the user gives."""
    recorded = dict(record.provenance["options"])
    check_known(recorded, setting_names(), f"{where}, recorded options")
    _require_given(recorded, given, where)
    values = {name: value for name, value in recorded.items() if name in TAKEN_FROM_RECORD}
    if values.get("calibrate") not in SOURCES:
        values.pop("calibrate", None)  # a path, which the user gives again
    return Settings(**overlaid(entries(values, where), given))


def _require_given(recorded: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raise UsageError where the conversion needed what only the user may say."""
    needed = [name for name in ("arch", "arch_arg", "trust_pickle") if recorded.get(name)]
    if recorded.get("calibrate") not in (None, *SOURCES):
        needed.append("calibrate")
    missing = [name for name in needed if name not in given]
    if not missing:
        return
    said = ", ".join(f"{option_text(name)} {str(recorded[name])[:80]!a}" for name in missing)
    raise UsageError(
        f"the file says that it was made with {said}; that is not taken from a file",
        where=where,
        hint=f"if you trust it, give {' and '.join(map(option_text, missing))} yourself",
    )


def _converted(
    model: Model, record: Record, settings: Settings, where: str, progress: Progress
) -> Conversion:
    """The conversion done again; it says of itself what the recorded one says."""
    plan = _plan(record, where)
    if plan.choices:  # for the errors only: the reasons are to stay as they are recorded
        pipeline.bind_plan(model, plan, where=where, allow_costlier=True, fuse=settings.fuse)
    calibrated = None
    if settings.calibration != "none":
        options = settings.calibration_options
        calibrated, _ = pipeline.calibrate(model, options, settings.split_options, progress)
    result = pipeline.convert(
        model,
        plan,
        settings.split_options,
        calibrated=calibrated,
        recorded=record.provenance["options"],
        progress=progress,
    )
    origin = result.report.provenance
    if origin is None:
        return result
    said = record.provenance
    origin = replace(origin, version=str(said["version"]), source=str(said["source"]))
    return replace(result, report=replace(result.report, provenance=origin))


def _plan(record: Record, where: str) -> Plan:
    """The recorded plan with its notes, which a plan that a person edits goes without."""
    plan = plan_from_dict(record.plan, where)
    notes = {entry["name"]: str(entry.get("note", "")) for entry in record.plan["layers"]}
    choices = tuple(replace(choice, note=notes[choice.layer]) for choice in plan.choices)
    return replace(plan, choices=choices)


def _same_bytes(result: Conversion, converted: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        written = result.save(Path(folder) / converted.name)
        pairs = [(path, converted.with_name(path.name)) for path in written]
        return all(
            theirs.is_file() and Digest(mine).of(mine) == Digest(theirs).of(theirs)
            for mine, theirs in pairs
        )


def opening(settings: Settings) -> dict[str, Any]:
    """The settings of a command that say how to open a model, and where its inputs are."""
    default = Settings()
    names = [f.name for f, declaration in Settings.declared() if declaration.heading == OPENING]
    names.append("calibrate")
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def require_alone(settings: Settings, outputs: Outputs) -> None:
    """Raise UsageError for options that compare outputs, which nothing does here."""
    others = [option_text(kind) for kind in outputs.reports]
    compared = ("max_error", "min_agreement", "samples", "seed")
    default = Settings()
    others += [option_text(n) for n in compared if getattr(settings, n) != getattr(default, n)]
    if others:
        raise UsageError(f"--reproduce runs no model; it excludes {', '.join(others)}")
