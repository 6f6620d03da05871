"""The options of the command line, each said once and shared by the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dacconv.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


class Option(click.Option):
    """An option that ``--help`` lists under a heading."""

    def __init__(self, *args: Any, panel: str = "Options", **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.panel = panel


class Command(click.Command):
    """A command whose help lists its options by their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, grouped, in the order in which they were declared."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                panels.setdefault(getattr(parameter, "panel", "Options"), []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Whole(click.ParamType[int]):
    """A number as the user typed it; whether it may be that small is told by who uses it."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a UsageError in dacconv's own words."""
        try:
            return int(value)
        except ValueError as error:
            where = param.opts[0] if param else ""
            raise UsageError(f"'{value}' is not a whole number above 0", where=where) from error


FILE = click.Path(path_type=Path)
NATURAL = click.IntRange(min=1)


def panel(title: str, *options: tuple[Any, ...]) -> Decorator[Any]:
    """Options under one heading, each a tuple of its names and, last, what it is."""

    def decorate(function: F) -> F:
        for *names, facts in reversed(options):
            function = click.option(*names, cls=Option, panel=title, **facts)(function)
        return function

    return decorate


def flag(help: str) -> dict[str, Any]:
    """An option that is there or not."""
    return {"is_flag": True, "help": help}


SOURCE = panel(
    "Opening the model",
    (
        "--input-shape",
        {
            "multiple": True,
            "metavar": "SHAPE",
            "help": "Sizes that the model does not fix, as 1,3,224,224 or NAME:1,3,224,224; "
            "repeatable.",
        },
    ),
    (
        "--arch",
        {
            "metavar": "FACTORY",
            "help": "What builds the network of a state dict: PACKAGE.MODULE:FACTORY or "
            "FILE.py:FACTORY.",
        },
    ),
    (
        "--arch-arg",
        {"multiple": True, "metavar": "NAME=VALUE", "help": "For the factory; repeatable."},
    ),
    ("--key", {"help": "The checkpoint's entry that holds the state dict."}),
    (
        "--trust-pickle",
        flag("Let a pickle run the code that it names. Only for files you trust."),
    ),
)

RANKS = panel(
    "Choosing layers and ranks",
    ("--rank", {"type": Whole(), "metavar": "R", "help": "The same rank for every layer."}),
    ("--ranks", {"metavar": "NAME=R,...", "help": "A rank for each name; names may be globs."}),
    (
        "--energy",
        {"type": float, "metavar": "SHARE", "help": "Smallest rank keeping it, as 0.95."},
    ),
    (
        "--energy-over",
        {"metavar": "mean|max", "help": "That share of the mean channel, or of all (mean)."},
    ),
    (
        "--macs",
        {"metavar": "SHARE", "help": "Best ranks that keep at most this share of the MACs, 0.45."},
    ),
    (
        "--params",
        {"metavar": "SHARE", "help": "Best ranks that keep at most this share of the parameters."},
    ),
    (
        "--latency",
        {"metavar": "SHARE", "help": "Best ranks that keep at most this share of the time, 0.6."},
    ),
    ("--plan", {"metavar": "FILE", "help": "A plan in JSON, as --dry-run writes it."}),
    (
        "--from-sweep",
        {"metavar": "FILE", "help": "A point of a sweep's results; --pick says which."},
    ),
    (
        "--pick",
        {"metavar": "WHICH", "help": "The best point within limits, as 'macs<=0.5'; or knee."},
    ),
)

LAYERS = panel(
    "Choosing layers and ranks",
    ("--first-k", {"type": Whole(), "metavar": "K", "help": "Only the first K layers."}),
    ("--last-k", {"type": Whole(), "metavar": "K", "help": "Only the last K layers."}),
    (
        "--layers",
        {"multiple": True, "metavar": "GLOB", "help": "Only layers that match; repeatable."},
    ),
    (
        "--skip",
        {"multiple": True, "metavar": "GLOB", "help": "No layers that match; repeatable."},
    ),
    ("--allow-costlier", flag("Split even where the rank makes a layer cost more.")),
    (
        "--fuse/--no-fuse",
        {"default": None, "help": "Merge BatchNorm and branches without loss first (yes)."},
    ),
    (
        "--kernel-scale",
        {
            "metavar": "own|folded|unit",
            "help": "Split kernels as trained, as BatchNorm folded them, or with every output "
            "channel at norm 1 (own).",
        },
    ),
    ("--config", {"type": FILE, "metavar": "FILE", "help": "Settings in TOML; options win."}),
)

TUNE = panel(
    "Speed",
    (
        "--tune",
        flag("Time the layers here: take the fastest form, leave alone what gets no faster."),
    ),
    (
        "--target",
        {"metavar": "RUNTIME", "help": "What will run it: onnxruntime or torch (the format's)."},
    ),
    (
        "--timings",
        {"type": FILE, "metavar": "FILE", "help": "Where times are kept (in the cache folder)."},
    ),
)
FORM = panel(
    "Speed",
    (
        "--form",
        {
            "metavar": "FORM",
            "help": "How splits are written: multiplier, sum, repeat, concat, or the fastest "
            "for each layer (auto).",
        },
    ),
)


def together(*panels: Decorator[Any]) -> Decorator[Any]:
    """Several panels as one."""

    def decorate(function: F) -> F:
        for one in reversed(panels):
            function = one(function)
        return function

    return decorate


CHOICE = together(RANKS, LAYERS)
"""All that decides what is split."""

SWEEP = panel(
    "What is tried",
    (
        "--mode",
        {
            "multiple": True,
            "metavar": "MODE",
            "help": "single: one layer at a time; first-k, last-k: the first or last k layers; "
            "uniform: all; budget: best ranks within --budgets (single); repeatable.",
        },
    ),
    ("--ranks", {"metavar": "R,...", "help": "Ranks to try, as 1-5 or 1,2,4 (1-5)."}),
    ("--budgets", {"metavar": "SHARE,...", "help": "Shares of the MACs, as 0.3,0.4,0.5."}),
)
MEASURES = panel(
    "What is measured",
    (
        "--eval",
        "task",
        {
            "metavar": "FILE.py:FUNCTION",
            "help": "Your own measure: called with the model, gives a number or a dict of them.",
        },
    ),
    ("--data", {"type": FILE, "metavar": "FILE", "help": "Top-1 on images and labels in .npz."}),
    ("--bench", flag("Time every point beside the original.")),
    (
        "--samples",
        {"type": NATURAL, "metavar": "N", "help": "Seeded inputs to compare outputs on (32)."},
    ),
    ("--seed", {"type": click.IntRange(min=0), "metavar": "N", "help": "Their seed (0)."}),
)
WORKERS = panel(
    "Who does the work",
    (
        "--jobs",
        {
            "type": NATURAL,
            "metavar": "N",
            "help": "N points at a time, with a thread each (as many as there are cores).",
        },
    ),
    (
        "--dask",
        {"metavar": "ADDRESS", "help": "The workers of a Dask scheduler, as tcp://host:8786."},
    ),
    (
        "--threads",
        {"type": NATURAL, "metavar": "N", "help": "Threads of the runtime in each process."},
    ),
)
RESULTS = panel(
    "Output",
    (
        "-o",
        "--output",
        {
            "type": FILE,
            "metavar": "FILE",
            "help": "Results, .csv or .json; an interrupted sweep goes on from them.",
        },
    ),
    ("--force", flag("Overwrite the results and start afresh.")),
)

CALIBRATE = panel(
    "Reproducing the layers' outputs",
    (
        "--calibrate",
        {
            "metavar": "HOW",
            "help": "none, synthetic, distilled, auto, or a folder of images or .npy/.npz of "
            "unlabelled inputs (auto with a budget, else none).",
        },
    ),
    (
        "--calibration-images",
        {"type": NATURAL, "metavar": "N", "help": "How many inputs at most."},
    ),
    ("--input-mean", {"metavar": "M,...", "help": "Mean that the model's input is freed of."}),
    ("--input-std", {"metavar": "S,...", "help": "What it is divided by after that."}),
    ("--input-range", {"metavar": "LOW,HIGH", "help": "Its range before that, as 0,255 (0,1)."}),
    ("--input-layout", {"metavar": "nchw|nhwc", "help": "Where the channels are."}),
    ("--input-order", {"metavar": "rgb|bgr", "help": "Order of colours read from files (rgb)."}),
    ("--device", {"metavar": "DEVICE", "help": "Where images are distilled: cpu, cuda (cuda "
                  "when present)."}),
)  # fmt: skip

_THREADS = (
    "--threads",
    {"type": NATURAL, "metavar": "N", "help": "Threads of the runtime (its own choice)."},
)
THREADS = panel("Speed", _THREADS)

RUN = panel(
    "Verification and gates",
    (
        "--samples",
        {"type": NATURAL, "metavar": "N", "help": "Seeded inputs to run (8)."},
    ),
    ("--seed", {"type": click.IntRange(min=0), "metavar": "N", "help": "Their seed (0)."}),
    _THREADS,
    (
        "--max-error",
        {"type": float, "metavar": "ERROR", "help": "Fail above this relative output error."},
    ),
)
BENCH = panel(
    "Measuring",
    ("--batch", {"metavar": "N,...", "help": "Batch sizes, as 1,8 (the models' own)."}),
    ("--threads", {"metavar": "N,...", "help": "Threads, as 1,2 (the runtime's own choice)."}),
    ("--rounds", {"type": Whole(), "metavar": "N", "help": "Alternating rounds at most (20)."}),
    (
        "--seconds",
        {"type": float, "metavar": "S", "help": "Time for each batch and thread count (20)."},
    ),
    ("--layers", flag("Times by layer too, by the runtime's profiler.")),
    ("--seed", {"type": click.IntRange(min=0), "metavar": "N", "help": "Of the inputs (0)."}),
    ("--device", {"metavar": "DEVICE", "help": "For torch models: cpu, cuda (cpu)."}),
    ("--dtype", {"metavar": "DTYPE", "help": "For torch models: float16, bfloat16."}),
    ("--channels-last", flag("Run torch models with channels last.")),
)
VERIFY = panel(
    "Verification and gates",
    (
        "--verify/--no-verify",
        {"default": None, "help": "Run original and converted side by side (yes)."},
    ),
)
SAVING = panel(
    "Verification and gates",
    ("--min-saving", {"metavar": "SHARE", "help": "Fail when fewer MACs are saved, as 40%."}),
)
AGREEMENT = panel(
    "Verification and gates",
    (
        "--min-agreement",
        {"metavar": "SHARE", "help": "Fail when fewer inputs keep their top class, as 99%."},
    ),
)

TARGET = panel(
    "Output",
    (
        "-o",
        "--output",
        {"type": FILE, "metavar": "FILE", "help": "The file to write."},
    ),
    ("--force", flag("Overwrite.")),
    ("--keep", flag("Write even when a gate is missed.")),
)
FORCE = panel("Output", ("--force", flag("Overwrite.")))
AT_ONCE = panel(
    "Output",
    (
        "--jobs",
        "at_once",
        {"type": NATURAL, "default": 1, "metavar": "N", "help": "Models converted at once (1)."},
    ),
)
REPRODUCE = panel(
    "Verification and gates",
    ("--reproduce", flag("Convert again as CONVERTED says it was made, and compare weights.")),
)
FOLDER = panel(
    "Output",
    (
        "-O",
        "--output-dir",
        {"type": FILE, "metavar": "DIR", "help": "The folder to write into; made if missing."},
    ),
)
DRY_RUN = panel("Output", ("--dry-run", flag("Print and write the plan only (-o names it).")))
JSON = panel(
    "Output",
    (
        "--json",
        {"type": FILE, "metavar": "FILE", "help": "Write the report as JSON; - is stdout."},
    ),
)
HTML = panel(
    "Output",
    (
        "--html",
        {"type": FILE, "metavar": "FILE", "help": "Write the report as a page; - is stdout."},
    ),
)
MARKDOWN = panel(
    "Output",
    (
        "--markdown",
        {"type": FILE, "metavar": "FILE", "help": "Write the report as Markdown; - is stdout."},
    ),
)
PLOTS = panel(
    "Output",
    ("--plots", {"type": FILE, "metavar": "DIR", "help": "Draw figures there, .png and .svg."}),
)
PLOT = panel(
    "Output",
    ("--plot", {"type": FILE, "metavar": "FILE", "help": "Draw it, as .png or .svg."}),
)
REPORTS = ("json", "markdown", "html", "plots")
"""The options that name a file for the report, or a folder for its figures."""
