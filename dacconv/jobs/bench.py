"""A benchmark as the command line asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dacconv.formats.base import LoadOptions
from dacconv.settings import BenchOptions
from dacconv.support.parsing import parse_counts
from dacconv.support.progress import Progress, silent
from dacconv.timing.benchmark.result import Benchmark
from dacconv.timing.benchmark.run import Procedure, bench


def bench_files(
    paths: Sequence[Path],
    options: BenchOptions,
    load_options: LoadOptions,
    progress: Progress = silent,
) -> Benchmark:
    """Measure models side by side; the first is what the others are compared with.

    Raises:
        DacconvError: whatever is wrong with the files or the options.
    """
    values: dict[str, Any] = {
        "batches": parse_counts(options.batch, "--batch"),
        "threads": parse_counts(options.threads, "--threads"),
    }
    names = [f.name for f in fields(options) if f.name not in ("batch", "threads")]
    values |= {name: v for name in names if (v := getattr(options, name)) is not None}
    return bench(paths, Procedure(**values), load_options, progress=progress)
