"""Results files in CSV or JSON. An interrupted sweep continues from its results file.

A CSV file begins with a comment line that holds the header as JSON. During a sweep every row is
appended and synced to the disk before the next one; when the file is read, a last line that a crash
has cut off is ignored. A JSON file is replaced as a whole for every row.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dacconv.errors import DacconvError, UsageError
from dacconv.safe_text import csv_text, from_csv_text, visible, visible_lines
from dacconv.support.files import as_write_error, write_text
from dacconv.support.json_values import is_count, is_number, is_text, read_json, shown
from dacconv.sweeps.results import PointResult, Sweep, row_to_dict, sweep_from_dict

COMMENT = "# dacconv sweep "
SUFFIXES = (".csv", ".json")
TEXTS = ("point", "mode", "layer", "note")
REQUIRED = ("point", "mode", "params")
TIMES = ("original_ms", "converted_ms", "speedup", "speedup_low", "speedup_high", "rounds", "batch")
WHOLES = ("k", "rank", "macs", "params", "rounds", "batch")


def check_suffix(path: Path) -> None:
    """Raise UsageError for a file whose suffix is neither .csv nor .json."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError("results are written to .csv or .json", where=str(path))


def to_csv(sweep: Sweep) -> str:
    """The sweep as CSV: a comment with the header, the names of the columns, a row per point."""
    data = {k: v for k, v in sweep.to_dict().items() if k != "points"}
    head = COMMENT + visible(json.dumps(data, ensure_ascii=False, separators=(",", ":"))) + "\n"
    rows = [row_to_dict(sweep, row) for row in sweep.rows]
    return head + _line(list(rows[0])) + "".join(_row(row) for row in rows)


def to_json(sweep: Sweep) -> str:
    """The sweep as indented JSON text, ending in a newline."""
    return visible_lines(json.dumps(sweep.to_dict(), indent=1, ensure_ascii=False)) + "\n"


def render(sweep: Sweep, path: Path) -> str:
    """The sweep as the text of a file, in the format of its suffix."""
    return to_json(sweep) if path.suffix.lower() == ".json" else to_csv(sweep)


def read_sweep(path: Path) -> Sweep:
    """Read a results file, also that of an interrupted sweep.

    Raises:
        UsageError: it does not exist, is not readable, or is not the results of a sweep.
    """
    where = str(path)
    try:
        data = path.read_bytes()
        if data.startswith(COMMENT.encode()):
            data = data[: data.rfind(b"\n") + 1]  # without a line that a crash has cut off
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise UsageError("no such file", where=where) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"not readable: {error}", where=where) from error
    try:
        if text.startswith(COMMENT):
            return _from_csv(text, where)
        return _checked(read_json(text, where), where)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration, csv.Error, DacconvError,
            RecursionError) as error:  # fmt: skip
        reason = f": {error.what}" if isinstance(error, DacconvError) else ""
        raise UsageError(
            f"not the results of a sweep{reason}",
            where=where,
            hint="`dacconv sweep MODEL -o FILE` writes them",
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Journal:
    """A results file that grows with the sweep; it is valid after every row."""

    path: Path
    sweep: Sweep
    rows: list[PointResult]

    def begin(self) -> None:
        """Write the header and the rows so far."""
        path = self.path.resolve()  # the target of a link is replaced, not the link
        write_text(path, render(self._current(), self.path))

    def add(self, row: PointResult) -> None:
        """Add a row, which is synced to the disk when this returns.

        Raises:
            WriteError: the file cannot be written.
        """
        self.rows.append(row)
        if self.path.suffix.lower() == ".json":
            self.begin()
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(_row(row_to_dict(self.sweep, row)))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise as_write_error(error, self.path) from error

    def _current(self) -> Sweep:
        return replace(self.sweep, rows=(self.sweep.original, *self.rows))


def set_aside(path: Path) -> Path:
    """Rename a file to ``NAME.bak``, or the first of ``NAME.bak2``, ... that does not exist."""
    number = 1
    while (other := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")).exists():
        number += 1
    try:
        path.rename(other)
    except OSError as error:
        raise as_write_error(error, path) from error
    return other


def _row(row: Mapping[str, Any]) -> str:
    cells = [csv_text(v) if isinstance(v, str) else "" if v is None else v for v in row.values()]
    cells[-1] = visible(json.dumps(row["plan"], ensure_ascii=False, separators=(",", ":")))
    return _line([repr(cell) if isinstance(cell, float) else cell for cell in cells])


def _line(cells: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def _from_csv(text: str, where: str) -> Sweep:
    head, _, body = text.partition("\n")
    data = read_json(head.removeprefix(COMMENT), where)
    reader = csv.reader(io.StringIO(body))
    columns = next(reader)
    if len(set(columns)) != len(columns) or not isinstance(data, dict):
        raise UsageError("a column occurs twice, or the first line is not a header", where=where)
    rows = [_cells(dict(zip(columns, cells, strict=True))) for cells in reader]
    return _checked({**data, "points": rows}, where)


def _checked(data: Any, where: str) -> Sweep:
    """The sweep that the data describes, with the type of every value checked.

    Raises:
        UsageError: a value is of a wrong type; the message names it.
    """
    _require(isinstance(data, dict), "it is not an object", where)
    header, layers, spectra, points = (
        data.get(name) for name in ("header", "layers", "spectra", "points")
    )
    _require(isinstance(header, dict), "'header' is not an object", where)
    _require(isinstance(header.get("options", {}), dict), "'options' is not an object", where)
    _require(
        isinstance(layers, list) and all(map(is_text, layers)), "'layers' are not names", where
    )
    _require(isinstance(spectra, dict), "'spectra' is not an object", where)
    for values in spectra.values():
        numbers = isinstance(values, list) and all(is_number(v) and v >= 0 for v in values)
        _require(numbers, "'spectra' holds something else than lists of numbers", where)
    _require(isinstance(points, list) and points, "'points' is not a list of points", where)
    for number, row in enumerate(points):
        _require(isinstance(row, dict), f"point {number} is not an object", where)
        for name, value in row.items():
            if not _fits(name, value):
                problem = f"point {number}, '{name}': {shown(value)} is not of the right kind"
                raise UsageError(problem, where=where)
        timed = [row.get(name) is not None for name in TIMES]
        _require(all(timed) or not any(timed), f"point {number}: not all of its times", where)
    return sweep_from_dict(data, where)


def _fits(name: str, value: object) -> bool:
    """Whether a value is of the type of its column; None, for not known, is for most."""
    if name == "plan":
        return isinstance(value, list)
    if value is None:
        return name not in REQUIRED
    if name in TEXTS:
        return is_text(value)
    return is_count(value) if name in WHOLES else is_number(value)


def _require(condition: object, problem: str, where: str) -> None:
    if not condition:
        raise UsageError(problem, where=where)


def _cells(cells: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        if name == "plan":
            values[name] = read_json(cell, "plan")
        elif not cell:
            values[name] = None
        elif name in TEXTS:
            values[name] = from_csv_text(cell)
        else:
            values[name] = int(cell) if name in WHOLES else float(cell)
    return values
