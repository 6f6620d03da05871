"""The job of the command ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dacconv.formats import open_model
from dacconv.formats.base import LoadOptions
from dacconv.settings import BenchOptions
from dacconv.support.outputs import Output, check_outputs
from dacconv.support.parsing import parse_counts
from dacconv.support.progress import Progress, silent
from dacconv.timing.benchmark.result import Benchmark
from dacconv.timing.benchmark.run import Procedure, bench


def bench_files(
    paths: Sequence[Path],
    options: BenchOptions,
    load_options: LoadOptions,
    *,
    outputs: Sequence[Output] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Benchmark:
    """Measure models side by side; the others are compared with the first.

    ``outputs`` are files that the caller writes afterwards; they are checked before the work.

    Raises:
        DacconvError: a file or an option is invalid.
    """
    inputs = list(paths)
    if any(output.path.exists() for output in outputs):  # one may be external data of a model
        inputs += [file for path in paths for file in open_model(path, load_options).files]
    check_outputs(outputs, inputs, force=force)
    values: dict[str, Any] = {
        "batches": parse_counts(options.batch, "--batch"),
        "threads": parse_counts(options.threads, "--threads"),
    }
    names = [f.name for f in fields(options) if f.name not in ("batch", "threads")]
    values |= {name: v for name in names if (v := getattr(options, name)) is not None}
    return bench(paths, Procedure(**values), load_options, progress=progress)
