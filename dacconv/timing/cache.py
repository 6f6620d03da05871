"""Measured times in a file: they take seconds to measure, and hold for one machine and version."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dacconv.errors import UsageError
from dacconv.formats import timing_adapter
from dacconv.support.files import write_text
from dacconv.support.json_values import is_number, read_json, shown
from dacconv.support.machine import cpu
from dacconv.timing.speeds import ONNXRUNTIME, Target

VERSION = 1
Times = dict[str, float]


def default_path() -> Path:
    """``timings.json`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dacconv" / "timings.json"


@dataclass(slots=True, eq=False)
class Cache:
    """Seconds by place (machine, runtime, version, threads, device), layer and case.

    Without ``path`` they are in memory only. The file is read when it is first needed, and
    again before it is written, so that times of other processes are not lost.
    """

    path: Path | None = None
    _data: dict[str, dict[str, Times]] | None = field(default=None)

    def get(self, target: Target, case: str) -> Mapping[str, float]:
        """The times of a layer; empty where it was not measured on that target."""
        if self._data is None:
            self._data = self._read()
        return self._data.get(where(target), {}).get(case, {})

    def put(self, target: Target, case: str, times: Mapping[str, float]) -> Mapping[str, float]:
        """Add times of a layer and write the file; return all times of that layer."""
        own = self._data or {}
        self._data = self._read()
        for place, cases in own.items():
            for name, own_times in cases.items():
                self._data.setdefault(place, {}).setdefault(name, {}).update(own_times)
        merged = self._data.setdefault(where(target), {}).setdefault(case, {})
        merged.update(times)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"version": VERSION, "timings": self._data}, indent=1, sort_keys=True)
            write_text(self.path.resolve(), text + "\n")  # a link stays one
        return merged

    def _read(self) -> dict[str, dict[str, Times]]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            data: Any = read_json(self.path.read_text(encoding="utf-8"), "the file")
            if data["version"] != VERSION:
                return {}
            return {
                place: {case: {k: _time(v) for k, v in times.items()} for case, times in c.items()}
                for place, c in data["timings"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
                UsageError) as error:  # fmt: skip
            raise UsageError(
                f"not a file of timings: {error}",
                where=str(self.path),
                hint="delete the file, or pass another one with --timings",
            ) from error


def _time(value: object) -> float:
    """The seconds of an entry; ValueError for anything but a positive number."""
    if not isinstance(value, (int, float)) or not is_number(value) or value <= 0:
        raise ValueError(f"{shown(value)} is not a time")
    return float(value)


def where(target: Target) -> str:
    """The machine, the runtime and its version, the threads and the device, as text."""
    return (
        f"{cpu()}; {target.runtime} {_version(target)}; "
        f"{target.threads} thread{'s' if target.threads > 1 else ''}; {_device(target.device)}"
    )


def _version(target: Target) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxruntime" if target.runtime == ONNXRUNTIME else "torch")
    except PackageNotFoundError:
        return "?"


def _device(name: str) -> str:
    """The device with the model of a GPU, as times of one model do not hold for another."""
    if not name.startswith("cuda"):
        return name
    return timing_adapter("torch").device_name(name)
