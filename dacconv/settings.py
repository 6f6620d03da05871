"""Every option of dacconv, said once.

A field of the classes below is an option: its name, kind, default, help, heading and the commands
that have it. The command line (``cli.commands``), the keys of a TOML file, the keyword arguments
of the Python API (``dacconv.api``) and the tables in the documentation are derived from it. A
new option is one field here, and a field of the value that takes it to the room that uses it:
the properties of :class:`Settings` build these values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dacconv.errors import UsageError
from dacconv.support.parsing import (
    parse_arguments,
    parse_numbers,
    parse_shapes,
    parse_share,
)

if TYPE_CHECKING:  # imports are most of the start-up time
    from dacconv.calibration.inputs.pixels import InputOptions
    from dacconv.calibration.prepare import CalibrationOptions
    from dacconv.conversion.gates import Gates
    from dacconv.conversion.verification import CheckOptions
    from dacconv.formats.base import LoadOptions
    from dacconv.graph.precision import Precision
    from dacconv.planning import RankOptions, Selection
    from dacconv.planning.spectra import SplitOptions
    from dacconv.timing.speeds import TimingOptions

WHOLE, NUMBER, TEXT, SWITCH, FLAG = "whole", "number", "text", "switch", "flag"
SHARE, TEXTS, RANKS, NUMBERS, PATH = "share", "texts", "ranks", "numbers", "path"
COUNT, NATURAL = "count", "natural"
"""Kinds of options. A flag can only be switched on, a switch also off; a
count is at least 1, a natural number at least 0, and the command checks a whole number."""

OPENING, LAYERS, SPEED = "Opening the model", "Choosing layers and ranks", "Speed"
CALIBRATION, CHECKS, OUTPUT = "Reproducing the layers' outputs", "Verification and gates", "Output"
TRIED, MEASURED, WORKERS = "What is tried", "What is measured", "Who does the work"
SIZE = "Size"
"""Headings of the help."""

EVERY = ("inspect", "convert", "fuse", "check", "bench", "sweep")
SMALL = ("pack", "round")
SPLITS = ("convert", "sweep")
RUNS = ("convert", "fuse", "check", "sweep")


@dataclass(frozen=True, slots=True)
class Option:
    """What is said of an option besides its name and default.

    Of the options of one ``choice`` those on the command line replace those of a file.
    ``alone`` are ways to choose that exclude the others. ``numbers`` is false for an option that
    changes no number of a conversion. ``words`` replaces the help for some commands.
    """

    kind: str
    help: str
    heading: str
    commands: tuple[str, ...]
    metavar: str | None = None
    names: tuple[str, ...] = ()
    choice: str = ""
    numbers: bool = True
    words: Mapping[str, str] = field(default_factory=dict)
    rare: bool = False  # only --help-all lists it


def option(kind: str, default: Any, help: str, heading: str, *commands: str, **more: Any) -> Any:
    """A field that is an option; ``more`` are fields of :class:`Option`."""
    metadata = {"option": Option(kind, help, heading, commands, **more)}
    if kind == RANKS:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Options:
    """A set of options. Values are as they are typed: ``None`` is not given."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The options with these values; UsageError, with the nearest name, for an unknown one."""
        check_known(values, [f.name for f in fields(cls)], "keyword arguments")
        plain = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**{name: value for name, value in plain.items() if value is not None})

    @classmethod
    def declared(cls, command: str | None = None) -> Iterator[tuple[Field[Any], Option]]:
        """The fields that are options, of one command or of all."""
        for each in fields(cls):
            declaration: Option = each.metadata["option"]
            if command is None or command in declaration.commands:
                yield each, declaration


@dataclass(frozen=True, slots=True)
class Settings(Options):
    """Everything that decides what a conversion does, and nothing about where it writes."""

    # fmt: off
    method: str | None = option(TEXT, None, "How layers are split: dac, cp, spatial, ... (docs/methods.md has them all), or several with commas between them; auto chooses the best for each layer (auto with a budget, else dac).", LAYERS, "inspect", *SPLITS, metavar="METHOD,...", names=("--method", "--methods"), words={"inspect": "With --tune: the methods whose splits are timed, or auto for all (dac)."})
    rank: int | None = option(WHOLE, None, "The same rank for every layer.", LAYERS, "convert", metavar="R", choice="ranks")
    ranks: dict[str, int | str] = option(RANKS, None, "A rank for each name, with its method as in conv1=spatial:12 or conv2=tucker:8x16; names may be globs.", LAYERS, "convert", metavar="NAME=R,...", choice="ranks")
    energy: float | None = option(NUMBER, None, "The smallest rank that keeps this share of the squared singular values, as 0.95.", LAYERS, "convert", metavar="SHARE", choice="ranks")
    energy_over: str = option(TEXT, "mean", "That share on average over the channels, or of every channel (mean).", LAYERS, "convert", metavar="mean|max", rare=True)
    vbmf: bool = option(FLAG, False, "The ranks that the kernels have beyond noise, by variational Bayesian matrix factorisation.", LAYERS, "convert", choice="ranks", rare=True)
    macs: str | float | None = option(SHARE, None, "The best ranks that keep at most this share of the MACs, as 0.45.", LAYERS, "convert", metavar="SHARE", choice="ranks")
    params: str | float | None = option(SHARE, None, "The best ranks that keep at most this share of the parameters.", LAYERS, "convert", metavar="SHARE", choice="ranks", rare=True)
    latency: str | float | None = option(SHARE, None, "The best ranks that keep at most this share of the measured time, as 0.6.", LAYERS, "convert", metavar="SHARE", choice="ranks")
    precision: str | None = option(TEXT, None, "The precision of the layers, alone or after a split: int8 (ONNX; ranges are measured on the inputs of --calibrate), auto (int8 where it is measured to be faster and the damage is small), or fp16 and bf16, which are stored only; and exceptions, as int8,conv1=fp32 (fp32).", LAYERS, "convert", metavar="PRECISION,...")
    target_accuracy: str | float | None = option(SHARE, None, "The largest saving that keeps this top-1 on --data, as 93.", LAYERS, "convert", metavar="PERCENT", choice="ranks")
    max_drop: str | float | None = option(SHARE, None, "The largest saving that loses at most so many points of top-1 on --data, as 0.5.", LAYERS, "convert", metavar="POINTS", choice="ranks")
    seconds: float | None = option(NUMBER, None, "How long the largest saving is searched for, where no rank or budget is given (60; with an accuracy 600).", LAYERS, "convert", metavar="S", numbers=False, rare=True)
    plan: str | None = option(PATH, None, "A plan in JSON, as --dry-run writes it.", LAYERS, "convert", metavar="FILE", choice="ranks")
    from_sweep: str | None = option(TEXT, None, "A point of a sweep's results; --pick says which.", LAYERS, "convert", metavar="FILE", choice="ranks", rare=True)
    pick: str | None = option(TEXT, None, "The best point within limits, as 'macs<=0.5'; or knee.", LAYERS, "convert", metavar="WHICH", rare=True)
    first_k: int | None = option(WHOLE, None, "Only the first K layers.", LAYERS, *SPLITS, metavar="K", choice="layers")
    last_k: int | None = option(WHOLE, None, "Only the last K layers.", LAYERS, *SPLITS, metavar="K", choice="layers")
    layers: tuple[str, ...] = option(TEXTS, (), "Only layers that match; repeatable.", LAYERS, *SPLITS, metavar="GLOB", numbers=False)
    skip: tuple[str, ...] = option(TEXTS, (), "No layers that match; repeatable.", LAYERS, *SPLITS, metavar="GLOB", numbers=False)
    allow_costlier: bool = option(FLAG, False, "Split a layer even where its rank makes it cost more.", LAYERS, *SPLITS, rare=True)
    fuse: bool = option(SWITCH, True, "Merge BatchNorm and branches without loss first (yes).", LAYERS, *SPLITS)
    kernel_scale: str = option(TEXT, "own", "Split kernels as trained, as BatchNorm folded them, or with every output channel at norm 1 (own).", LAYERS, *SPLITS, metavar="own|folded|unit", rare=True)
    form: str | None = option(TEXT, None, "How DAC's depthwise convs are written: multiplier, sum, repeat, concat, or the fastest for each layer (auto).", SPEED, "convert", metavar="FORM", rare=True)
    tune: bool = option(FLAG, False, "Time the layers here: take the fastest form, leave alone what gets no faster.", SPEED, "inspect", "convert")
    target: str | None = option(TEXT, None, "What will run the model: onnxruntime or torch (the runtime of its format).", SPEED, "inspect", "convert", metavar="RUNTIME", rare=True)
    timings: str | None = option(PATH, None, "Where measured times are kept (in the user's cache folder).", SPEED, "inspect", "convert", metavar="FILE", rare=True)
    calibrate: str | None = option(TEXT, None, "none, synthetic, distilled, auto, or a folder of images or .npy/.npz of unlabelled inputs (auto with a budget, else none).", CALIBRATION, *SPLITS, "check", "pack", metavar="HOW", words={"check": "With --reproduce: the user's own inputs, where the conversion was calibrated on such.", "pack": "Inputs that rounding errors are measured on: none, synthetic, distilled, auto, or a folder of images or .npy/.npz (synthetic)."})
    calibration_images: int | None = option(COUNT, None, "How many inputs at most.", CALIBRATION, *SPLITS, "pack", metavar="N", rare=True)
    input_mean: str | None = option(NUMBERS, None, "Mean that is subtracted from the model's input.", CALIBRATION, *RUNS, *SMALL, metavar="M,...")
    input_std: str | None = option(NUMBERS, None, "Deviation that the input is divided by after that.", CALIBRATION, *RUNS, *SMALL, metavar="S,...")
    input_range: str | None = option(NUMBERS, None, "The range of the input before that, as 0,255 (0,1).", CALIBRATION, *RUNS, *SMALL, metavar="LOW,HIGH", rare=True)
    input_layout: str | None = option(TEXT, None, "Where the channels of the input are.", CALIBRATION, *RUNS, *SMALL, metavar="nchw|nhwc", rare=True)
    input_order: str = option(TEXT, "rgb", "Order of the colours that the model takes (rgb).", CALIBRATION, *RUNS, *SMALL, metavar="rgb|bgr", rare=True)
    device: str | None = option(TEXT, None, "Where images are distilled: cpu, cuda (cuda if present).", CALIBRATION, *SPLITS, "pack", metavar="DEVICE", rare=True)
    input_shape: tuple[str, ...] = option(TEXTS, (), "Sizes that the model does not fix, as 1,3,224,224 or NAME:1,3,224,224; repeatable.", OPENING, *EVERY, *SMALL, metavar="SHAPE")
    what_if: tuple[str, ...] = option(TEXTS, (), "The costs with another width multiplier or image size, as width=0.5 or resolution=160; repeatable.", LAYERS, "inspect", metavar="NAME=VALUE", numbers=False)
    arch: str | None = option(TEXT, None, "What builds the network of a state dict: PACKAGE.MODULE:FACTORY or FILE.py:FACTORY; none for the weights alone (a known network is recognised).", OPENING, *EVERY, *SMALL, metavar="FACTORY")
    arch_arg: tuple[str, ...] = option(TEXTS, (), "An argument of the factory; repeatable.", OPENING, *EVERY, *SMALL, metavar="NAME=VALUE", rare=True)
    key: str | None = option(TEXT, None, "The checkpoint's entry that holds the state dict.", OPENING, *EVERY, *SMALL, rare=True)
    trust_pickle: bool = option(FLAG, False, "Let a pickle run the code that it names. Only for files that you trust.", OPENING, *EVERY, *SMALL)
    verify: bool = option(SWITCH, True, "Run original and converted model side by side (yes).", CHECKS, "convert", "fuse", *SMALL, numbers=False)
    samples: int | None = option(COUNT, None, "Inputs to compare the models on (8 to 64, by the model's cost).", CHECKS, *RUNS, *SMALL, metavar="N", words={"sweep": "Inputs to compare outputs on (32)."}, rare=True)
    data: str | None = option(PATH, None, "Your own images, to compare the models on: .npz or .npy, or a folder; accuracy too where they are labelled.", CHECKS, "convert", "fuse", "check", *SMALL, metavar="PATH", numbers=False)
    seed: int = option(NATURAL, 0, "Their seed (0).", CHECKS, *RUNS, *SMALL, metavar="N", rare=True)
    threads: int | None = option(COUNT, None, "Threads of the runtime (its own choice).", SPEED, "inspect", *RUNS, *SMALL, metavar="N", numbers=False, rare=True)
    max_error: float | None = option(NUMBER, None, "Fail above this relative output error.", CHECKS, "convert", "fuse", "check", *SMALL, metavar="ERROR", numbers=False, words={"pack": "The smallest file whose outputs have at most this relative error; with --bits or --size, fail above it."})
    min_saving: str | float | None = option(SHARE, None, "Fail if fewer MACs are saved, as 40%.", CHECKS, "convert", metavar="SHARE", numbers=False, rare=True)
    min_agreement: str | float | None = option(SHARE, None, "Fail if fewer inputs keep their top class, as 99%.", CHECKS, "convert", "check", *SMALL, metavar="SHARE", numbers=False)
    # fmt: on

    BUDGETS: ClassVar[tuple[str, ...]] = ("macs", "params", "latency")

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults, as JSON has them, for the provenance.

        Without the number of threads where no times are measured: it does not change the result.
        """
        default = (
            Settings() if self.tune or self.latency else replace(Settings(), threads=self.threads)
        )
        return {
            f.name: list(value) if isinstance(value, tuple) else value
            for f in fields(self)
            if (value := getattr(self, f.name)) != getattr(default, f.name)
        }

    def chosen_by(self, *choices: str) -> list[str]:
        """The options, as they are typed, that choose ranks or layers."""
        choosing = [f for f, o in self.declared() if o.choice in choices]
        return [
            option_text(f.name) for f in choosing if getattr(self, f.name) not in (f.default, {})
        ]

    def budget(self, name: str) -> float | None:
        """The budget of that name as a share; UsageError for a value that is none."""
        value = getattr(self, name)
        return None if value is None else parse_share(value, option_text(name))

    @property
    def load_options(self) -> LoadOptions:
        """How the model is opened."""
        from dacconv.formats.base import LoadOptions

        return LoadOptions(
            input_shapes=parse_shapes(self.input_shape),
            arch=self.arch,
            arch_args=parse_arguments(self.arch_arg),
            key=self.key,
            trust_pickle=self.trust_pickle,
            vouched=self.layers,
        )

    @property
    def rank_options(self) -> RankOptions:
        """How ranks are chosen."""
        from dacconv.planning import RankOptions

        return RankOptions(
            method=self.method,
            rank=self.rank,
            ranks=self.ranks,
            energy=self.energy,
            energy_over=self.energy_over,
            vbmf=self.vbmf,
            macs=self.budget("macs"),
            params=self.budget("params"),
            latency=self.budget("latency"),
            allow_costlier=self.allow_costlier,
        )

    @property
    def selection(self) -> Selection:
        """Which layers are split."""
        from dacconv.planning import Selection

        return Selection(self.first_k, self.last_k, tuple(self.layers), tuple(self.skip))

    @property
    def split_options(self) -> SplitOptions:
        """How the layers are split."""
        from dacconv.planning.spectra import SplitOptions

        return SplitOptions(self.fuse, self.kernel_scale, self.form)

    @property
    def timing_options(self) -> TimingOptions:
        """How the layers are timed."""
        from dacconv.timing.speeds import TimingOptions

        tune = self.tune or self.latency is not None
        if self.timings is not None and not tune:
            raise UsageError("goes with --tune or --latency", where="--timings")
        path = None if self.timings is None else Path(self.timings)
        return TimingOptions(tune, self.target, self.threads, self.device, path)

    @property
    def calibration(self) -> str:
        """How to calibrate: as given, else ``auto`` with a budget and ``none`` without."""
        budgeted = any(getattr(self, name) is not None for name in self.BUDGETS)
        return self.calibrate or ("auto" if budgeted else "none")

    @property
    def plan_precision(self) -> Precision | None:
        """The precision of the layers; None where they keep their own."""
        from dacconv.graph.precision import parse_precision

        return None if self.precision is None else parse_precision(self.precision, "--precision")

    @property
    def calibration_options(self) -> CalibrationOptions:
        """What the model is calibrated on."""
        from dacconv.calibration.prepare import CalibrationOptions

        return CalibrationOptions(self.calibration, self.input_options, self.seed, self.device)

    @property
    def input_options(self) -> InputOptions:
        """What the user says about the model's input; UsageError for what makes no sense."""
        from dacconv.calibration.inputs.pixels import InputOptions

        for name, value, choices in (
            ("layout", self.input_layout, ("nchw", "nhwc")),
            ("order", self.input_order, ("rgb", "bgr")),
        ):
            if value is not None and value not in choices:
                raise UsageError(
                    f"'{value}' is not one of {', '.join(choices)}", where=f"--input-{name}"
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

    @property
    def check_options(self) -> CheckOptions:
        """How the outputs of two models are compared."""
        from dacconv.conversion.verification import CheckOptions

        return CheckOptions(
            verify=self.verify,
            samples=self.samples,
            seed=self.seed,
            threads=self.threads,
            input=self.input_options,
            data=None if self.data is None else Path(self.data),
        )

    @property
    def gates(self) -> Gates:
        """The gates as numbers; UsageError for a value that is none."""
        from dacconv.conversion.gates import Gates

        if self.max_error is not None and not self.max_error >= 0:
            raise UsageError(f"{self.max_error} is not an error above 0", where="--max-error")
        return Gates(
            max_error=self.max_error,
            min_saving=self.budget("min_saving"),
            min_agreement=self.budget("min_agreement"),
        )


@dataclass(frozen=True, slots=True)
class SweepOptions(Options):
    """What a sweep tries and measures, besides the settings of every conversion."""

    # fmt: off
    mode: tuple[str, ...] = option(TEXTS, (), "single: one layer at a time; first-k, last-k: the first or last k layers; uniform: all; budget: the best ranks within --budgets (single); repeatable.", TRIED, "sweep", metavar="MODE")
    ranks: str | None = option(TEXT, None, "Ranks to try, as 1-5 or 1,2,4 (1-5).", TRIED, "sweep", metavar="R,...")
    budgets: str | None = option(TEXT, None, "Shares of the MACs, as 0.3,0.4,0.5.", TRIED, "sweep", metavar="SHARE,...")
    task: str | None = option(TEXT, None, "Your own measure: called with the model, returns a number or a dict of numbers.", MEASURED, "sweep", metavar="FILE.py:FUNCTION", names=("--eval",))
    data: Path | None = option(PATH, None, "Top-1 on images and labels in .npz.", MEASURED, "sweep", metavar="FILE")
    bench: bool = option(FLAG, False, "Time every point beside the original.", MEASURED, "sweep")
    jobs: int | None = option(COUNT, None, "Measure N points at a time, with a thread each (as many as there are cores).", WORKERS, "sweep", metavar="N")
    dask: str | None = option(TEXT, None, "The workers of a Dask scheduler, as tcp://host:8786.", WORKERS, "sweep", metavar="ADDRESS")
    # fmt: on


@dataclass(frozen=True, slots=True)
class PackOptions(Options):
    """How a model is made a small file."""

    # fmt: off
    lossless: bool = option(FLAG, False, "Keep every bit of the model.", SIZE, "pack")
    bits: int | None = option(WHOLE, None, "Round each weight to at most 2^B levels, as 8, 6, 5 or 4 (6).", SIZE, "pack", metavar="B")
    size: str | float | None = option(SHARE, None, "The least damage in a file of at most this share of the model's size, as 0.1.", SIZE, "pack", metavar="SHARE")
    # fmt: on

    @property
    def share(self) -> float:
        """``size`` as a number; UsageError where it is none."""
        return parse_share(self.size or 0, "--size")


@dataclass(frozen=True, slots=True)
class RoundOptions(Options):
    """How a model gets few different values."""

    # fmt: off
    float_levels: int = option(WHOLE, 256, "How many values each weight may have, equally spaced (256).", SIZE, "round", metavar="N")
    # fmt: on


@dataclass(frozen=True, slots=True)
class BenchOptions(Options):
    """How models are timed side by side."""

    # fmt: off
    batch: str | None = option(TEXT, None, "Batch sizes, as 1,8 (the models' own).", MEASURED, "bench", metavar="N,...")
    threads: str | None = option(TEXT, None, "Threads, as 1,2 (the runtime's own choice).", MEASURED, "bench", metavar="N,...")
    rounds: int | None = option(WHOLE, None, "Alternating rounds at most (20).", MEASURED, "bench", metavar="N")
    seconds: float | None = option(NUMBER, None, "Time for each batch and thread count (20).", MEASURED, "bench", metavar="S")
    layers: bool = option(FLAG, False, "Times by layer too, by the runtime's profiler.", MEASURED, "bench")
    seed: int | None = option(NATURAL, None, "Seed of the inputs (0).", MEASURED, "bench", metavar="N")
    device: str | None = option(TEXT, None, "For torch models: cpu, cuda (cpu).", MEASURED, "bench", metavar="DEVICE")
    dtype: str | None = option(TEXT, None, "For torch models: float16, bfloat16.", MEASURED, "bench", metavar="DTYPE")
    channels_last: bool = option(FLAG, False, "Run torch models with channels last.", MEASURED, "bench")
    # fmt: on


@dataclass(frozen=True, slots=True)
class Outputs(Options):
    """Where a command writes, and whether it may overwrite."""

    # fmt: off
    config: Path | None = option(PATH, None, "Settings in TOML; options win.", LAYERS, *SPLITS, metavar="FILE")
    output: Path | None = option(PATH, None, "The file to write.", OUTPUT, "convert", "fuse", "sweep", *SMALL, "unpack", metavar="FILE", names=("-o", "--output"), words={"sweep": "Results, .csv or .json; an interrupted sweep continues from them."})
    output_dir: Path | None = option(PATH, None, "The folder to write into; created if missing.", OUTPUT, "convert", metavar="DIR", names=("-O", "--output-dir"))
    jobs: int = option(COUNT, 1, "Convert N models at a time (1).", OUTPUT, "convert", "run", metavar="N")
    force: bool = option(FLAG, False, "Overwrite.", OUTPUT, *EVERY, "run", *SMALL, "unpack", words={"sweep": "Overwrite the results and start again."})
    keep: bool = option(FLAG, False, "Write even if a gate is missed or the network is broken.", OUTPUT, "convert", "fuse", *SMALL)
    dry_run: bool = option(FLAG, False, "Convert and verify in memory; write the plan only (-o names it).", OUTPUT, "convert", "run")
    verbose: bool = option(FLAG, False, "Print the roofline and how costs are counted as well.", OUTPUT, "inspect", "convert", "fuse", names=("-v", "--verbose"))
    reproduce: bool = option(FLAG, False, "Convert again as CONVERTED says that it was, and compare the weights.", CHECKS, "check")
    json: Path | None = option(PATH, None, "Write the report as JSON; - is stdout.", OUTPUT, "inspect", "convert", "fuse", "check", "bench", metavar="FILE")
    markdown: Path | None = option(PATH, None, "Write the report as Markdown; - is stdout.", OUTPUT, "inspect", "convert", "fuse", "bench", metavar="FILE", rare=True)
    html: Path | None = option(PATH, None, "Write the report as a page; - is stdout.", OUTPUT, *EVERY, metavar="FILE")
    plots: Path | None = option(PATH, None, "Draw figures there, .png and .svg.", OUTPUT, "inspect", "convert", "fuse", "sweep", metavar="DIR", rare=True)
    plot: Path | None = option(PATH, None, "Draw the result, as .png or .svg.", OUTPUT, "bench", metavar="FILE")
    # fmt: on

    @property
    def reports(self) -> dict[str, Path]:
        """Where the reports go, by their kind."""
        named = {kind: getattr(self, kind) for kind in ("json", "markdown", "html", "plots")}
        return {kind: path for kind, path in named.items() if path is not None}


COMMANDS: dict[str, tuple[type[Options], ...]] = {
    "inspect": (Settings, Outputs),
    "convert": (Settings, Outputs),
    "fuse": (Settings, Outputs),
    "check": (Settings, Outputs),
    "run": (Outputs,),
    "bench": (BenchOptions, Settings, Outputs),
    "sweep": (SweepOptions, Settings, Outputs),
    "diff": (),
    "pack": (PackOptions, Settings, Outputs),
    "unpack": (Outputs,),
    "round": (RoundOptions, Settings, Outputs),
}
"""The options of each command, in the order of its help."""


def option_text(name: str) -> str:
    """A setting's name as it is typed: ``--last-k``."""
    return f"--{name.replace('_', '-')}"


def check_known(data: Mapping[str, Any], names: Any, where: str) -> None:
    """Raise UsageError, with the nearest known name, for a key that is not known."""
    known = [name.replace("_", "-") for name in names]
    for key in data:
        if key.replace("_", "-") not in known:
            (near,) = get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.0)
            raise UsageError(f"unknown key '{key}'", where=where, hint=f"the nearest is '{near}'")


def overlaid(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``others`` over them.

    A way to choose ranks among ``others`` replaces that of ``values``, and so do --first-k and
    --last-k.
    """
    choices: dict[str, set[str]] = {}
    for each, declaration in Settings.declared():
        if declaration.choice:
            choices.setdefault(declaration.choice, set()).add(each.name)
    for names in choices.values():
        if any(name in others for name in names):
            values = {key: value for key, value in values.items() if key not in names}
    return {**values, **others}
