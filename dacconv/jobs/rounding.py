"""How finely weights are rounded so that a packed file has a size, or its outputs an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dacconv import __version__
from dacconv.calibration.prepare import CalibrationOptions
from dacconv.conversion import pipeline
from dacconv.conversion.verification import verify
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import Model
from dacconv.formats.inputs import reason_not_runnable
from dacconv.formats.spans import ModelFile
from dacconv.jobs.write import open_with
from dacconv.packing.choice import (
    RoundedModel,
    estimated_bits,
    round_model,
    steps_by_strength,
)
from dacconv.packing.container import Packed, to_bytes
from dacconv.packing.packing import pack
from dacconv.packing.weights import Weight, find_weights, with_metrics
from dacconv.planning.spectra import SplitOptions
from dacconv.settings import Settings
from dacconv.support.files import as_write_error, staging
from dacconv.support.progress import Progress

DEFAULT_BITS = 6
WEAKEST, STRONGEST = 1e-16, 1e-1
"""The strengths that are tried."""
MOST_TRIES = 5
CLOSE = 0.85
"""The search for an error ends with an error that is at most this much below it."""


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """The files of a model as they are."""

    kind: str
    files: tuple[ModelFile, ...]
    contents: tuple[bytes, ...]

    def write(self, contents: Sequence[bytes], folder: Path) -> Path:
        """Write other contents of these files into a folder; return the path of the model."""
        try:
            for file, content in zip(self.files, contents, strict=True):
                place = folder / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        except OSError as error:
            raise as_write_error(error, folder / self.files[0].name) from error
        return folder / self.files[0].name

    def packed(self, rounded: RoundedModel | None = None) -> Packed:
        """The files as a packed file, as they are or with rounded weights."""
        how = "without loss" if rounded is None else "rounded weights"
        about = {"made_by": f"dacconv {__version__}", "how": how}
        if rounded is None:
            return pack(self.kind, self.files, self.contents, about=about)
        return pack(self.kind, self.files, rounded.contents, rounded.levels, about)


def measured_weights(
    model: Model, original: Original, settings: Settings, progress: Progress
) -> tuple[list[Weight], list[str]]:
    """The weights that can be rounded, with what errors do to outputs where that can be measured.

    Raises:
        UnsupportedError: there are none; or the inputs that the user wants cannot be had.
    """
    weights, notes = find_weights(model, original.files, original.contents)
    source = settings.calibrate or "synthetic"
    if source == "none":
        return weights, notes
    options = CalibrationOptions(source, settings.input_options, settings.seed, settings.device)
    try:
        calibrated, words = pipeline.calibrate(model, options, SplitOptions(fuse=False), progress)
        if calibrated is None:
            return weights, [*notes, words]
        measured = with_metrics(model, weights, calibrated.inputs, progress)
    except UnsupportedError as error:
        if settings.calibrate is not None and settings.calibrate != "auto":
            raise
        return weights, [*notes, f"rounded to the nearest levels, without inputs: {error.what}"]
    plain = [weight.name for weight in measured if weight.metric is None]
    if plain:
        notes.append(f"rounded to the nearest levels: {', '.join(plain[:5])}")
    return measured, [*notes, f"inputs for rounding: {calibrated.inputs.description}"]


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Looks for the strength of rounding that gives what the user wants."""

    model: Model
    original: Original
    weights: Sequence[Weight]
    settings: Settings
    target: Path
    progress: Progress

    def by_size(self, share: float) -> RoundedModel:
        """The least damage in a packed file of at most this share of the model's size.

        Raises:
            UnsupportedError: the file is larger than that however the weights are rounded.
        """
        most = share * sum(map(len, self.original.contents))
        offset = 0.0  # what is not estimated: tables, headers, everything that is not rounded
        best: RoundedModel | None = None
        best_size, smallest = 0, math.inf
        for tries in range(MOST_TRIES):
            self.progress("searching for the size", tries, MOST_TRIES)
            strength = self._strength_for(8 * (most - offset))
            rounded = self._rounded(strength)
            size = len(to_bytes(self.original.packed(rounded)))
            smallest = min(smallest, size)
            if best_size < size <= most:
                best, best_size = rounded, size
            if 0.97 * most <= size <= most or (size > most and strength >= STRONGEST):
                break
            estimate = estimated_bits(self.weights, self._steps(strength)) / 8
            offset = size - estimate + 0.01 * most
        self.progress("searching for the size", MOST_TRIES, MOST_TRIES)
        if best is None:
            raise UnsupportedError(
                f"the smallest packed file has {smallest:,} bytes, more than the {int(most):,} of "
                f"--size {share:g}",
                where=str(self.model.path),
                hint="a larger --size; what is not rounded takes the rest",
            )
        return best

    def by_error(self, error: float) -> RoundedModel:
        """The smallest file whose outputs have at most this relative error.

        Raises:
            UsageError: the model cannot be run.
        """
        if not self.settings.verify:
            raise UsageError("--max-error needs the verification")
        if reason := reason_not_runnable(self.model):
            raise UsageError(f"--max-error needs the model to run, but {reason}")
        numbers = sum(weight.kernel.size for weight in self.weights)
        strength = 2 * error**2 / max(numbers, 1)
        best: RoundedModel | None = None
        best_strength = 0.0
        rounded = self._rounded(min(max(strength, WEAKEST), STRONGEST))
        for tries in range(MOST_TRIES):
            self.progress("searching for the error", tries, MOST_TRIES)
            actual = self._error(rounded)
            if actual <= error and strength > best_strength:
                best, best_strength = rounded, strength
            if CLOSE * error <= actual <= error or strength in (WEAKEST, STRONGEST):
                break
            factor = (0.94 * error / max(actual, 1e-9)) ** 2
            strength = min(max(strength * min(max(factor, 1e-4), 1e3), WEAKEST), STRONGEST)
            if best is not None and strength <= best_strength:
                break
            rounded = self._rounded(strength)
        self.progress("searching for the error", MOST_TRIES, MOST_TRIES)
        return best or rounded  # the gate then says what it misses

    def _steps(self, strength: float) -> list[float]:
        return steps_by_strength(self.weights, strength)

    def _rounded(self, strength: float) -> RoundedModel:
        files, contents = self.original.files, self.original.contents
        return round_model(files, contents, self.weights, self._steps(strength))

    def _strength_for(self, bits: float) -> float:
        """The smallest strength at which the weights take about so many bits."""
        low, high = math.log(WEAKEST), math.log(STRONGEST)
        for _ in range(14):
            middle = (low + high) / 2
            if estimated_bits(self.weights, self._steps(math.exp(middle))) > bits:
                low = middle
            else:
                high = middle
        return math.exp(high)

    def _error(self, rounded: RoundedModel) -> float:
        with staging(self.target) as folder:
            place = self.original.write(rounded.contents, folder)
            reopened = open_with(place, replace(self.settings, layers=()))
            check = verify(self.model, reopened, self.settings.check_options)
            del reopened
        return math.inf if check.relative_error is None else check.relative_error
