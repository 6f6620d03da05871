"""The Python API: the path of a conversion, with the options as keyword arguments.

The keywords of :func:`plan`, :func:`convert`, :func:`calibrate` and :func:`sweep` are the names of
the command line's options, with underscores; ``dacconv.settings`` lists them. Errors name the
keywords.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from dacconv.conversion import pipeline
from dacconv.conversion.pipeline import Conversion
from dacconv.conversion.report import Report
from dacconv.formats import open_model
from dacconv.formats.base import LoadOptions, Model
from dacconv.graph.findings import Verification
from dacconv.graph.types import Array, Layer, Plan
from dacconv.keywords import in_keywords, keywords
from dacconv.settings import Settings
from dacconv.support.progress import Progress, silent

if TYPE_CHECKING:  # imports are most of the start-up time
    from torch import Tensor, nn

    from dacconv.calibration.inputs.pixels import InputOptions
    from dacconv.calibration.prepare import Calibrated
    from dacconv.sweeps.results import Sweep
    from dacconv.sweeps.tasks import Task
    from dacconv.timing import Speeds
    from dacconv.timing.benchmark.result import Benchmark


@in_keywords
def load(
    source: str | Path | nn.Module,
    options: LoadOptions | None = None,
    *,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    trust_pickle: bool | None = None,
) -> Model:
    """Open a checkpoint, or take a torch module in memory, which stays as it is.

    >>> model = load("resnet.onnx")
    >>> model = load("vgg.pth", arch="nets.py:vgg16", input_shape=(1, 3, 224, 224))
    >>> model = load(torchvision.models.resnet18(), input_shape=(1, 3, 224, 224))

    Args:
        source: the path of a file, or a module.
        options: what the other arguments say, as one value.
        input_shape: the size of the input where the model does not fix it, with the batch; of
            several inputs by their names.
        input_shapes: the same, by the names of the inputs; ``""`` is the first.
        arch: what builds the network of a state dict, ``PACKAGE.MODULE:FACTORY`` or
            ``FILE.py:FACTORY``.
        arch_args: keyword arguments of the factory.
        key: the checkpoint's entry that holds the state dict.
        trust_pickle: let a pickle run the code that it names.

    Raises:
        FormatError: not a file that dacconv reads; the message says what it is.
        UsageError: the options do not fit the file.
    """
    shapes = input_shapes
    if input_shape is not None:
        shapes = input_shape if isinstance(input_shape, Mapping) else {"": input_shape}
    given = {
        "input_shapes": None if shapes is None else {n: tuple(v) for n, v in shapes.items()},
        "arch": arch,
        "arch_args": arch_args,
        "key": key,
        "trust_pickle": trust_pickle,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    opening = replace(options or LoadOptions(), **changes)
    if isinstance(source, (str, Path)):
        return open_model(Path(source), opening)
    if not _is_module(source):
        raise TypeError(f"load takes a path or a torch module, not {type(source).__name__}")
    from dacconv.formats.torch.module.memory import wrap

    return wrap(source, opening)


@in_keywords
def inspect(model: Model) -> Report:
    """The report of a model as it is: every layer, its sizes and costs."""
    return pipeline.inspect(model)


@in_keywords
def survey(model: Model, *, fuse: bool = True) -> tuple[Layer, ...]:
    """Every layer of the model that carries multiply-adds, eligible or with its reason.

    With ``fuse`` everything that can be merged without loss is one layer.
    """
    return pipeline.survey(model, fuse=fuse)


@in_keywords
def calibrate(
    model: Model,
    how: str = "auto",
    *,
    options: InputOptions | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> tuple[Calibrated | None, str]:
    """Inputs that :func:`plan` and :func:`convert` measure a model on; and what they are in words.

    Args:
        model: an opened model.
        how: ``none``, ``synthetic``, ``distilled``, ``auto``, or the path of a folder of images
            or of an array.
        options: what is known about the input, instead of ``input_mean`` and its like.
        progress: called with a task, the steps done and their number.
        settings: options such as ``fuse``, ``kernel_scale``, ``seed``, ``input_range``.

    Raises:
        UnsupportedError: the model does not allow that; never with ``auto``.
        UsageError: the path, or the options about the input, do not fit.
    """
    values = Settings.of(calibrate=how, **settings)
    calibration = values.calibration_options
    if options is not None:
        calibration = replace(calibration, input=options)
    return pipeline.calibrate(model, calibration, values.split_options, progress)


@in_keywords
def plan(
    model: Model,
    *,
    calibrated: Calibrated | None = None,
    speeds: Speeds | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Plan:
    """Choose a method, a rank and a form for each layer.

    >>> plan(model, rank=2, last_k=5)
    >>> plan(model, macs=0.45, method="auto")
    >>> plan(model, precision="int8")

    Args:
        model: an opened model.
        calibrated: inputs from :func:`calibrate`; a budget minimises the damage that they show.
        speeds: measured or estimated times of the layers.
        progress: called with a task, the steps done and their number.
        settings: options; exactly one of ``rank``, ``ranks``, ``energy``, ``macs``, ``params`` and
            ``latency`` is needed, or ``precision`` alone.

    Raises:
        UsageError: options that contradict each other or the model, or unknown ones.
        UnsupportedError: the model has no layer that can be split.
    """
    values = Settings.of(**settings)
    if values.precision is not None and not values.chosen_by("ranks"):
        pipeline.require_floating(model)
        return Plan((), precision=values.plan_precision)
    result = pipeline.plan(
        model,
        values.rank_options,
        values.selection,
        values.split_options,
        calibrated=calibrated,
        speeds=speeds,
        progress=progress,
    )
    return replace(result, precision=values.plan_precision)


@overload
def convert(
    model: Model,
    plan: Plan,
    *,
    calibrated: Calibrated | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Conversion: ...
@overload
def convert(
    model: nn.Module,
    plan: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    progress: Progress = silent,
    **settings: Any,
) -> nn.Module: ...
@in_keywords
def convert(
    model: Any,
    plan: Any,
    *,
    calibrated: Calibrated | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Any:
    """Carry out a plan; or convert a torch module in memory in one call.

    >>> conversion = convert(load("resnet.onnx"), plan)
    >>> net = convert(net, torch.randn(1, 3, 224, 224), rank=2, last_k=5)
    >>> net = convert(net, torch.randn(1, 3, 224, 224), macs=0.5)

    The model stays as it is; nothing is written before ``save``. A module comes back as a module
    whose layers are plain ``torch.nn`` ones; it is verified on drawn images, with a warning if
    the result is broken (``verify=False`` leaves that out). All options of the command line are its
    keywords; without a rank or a budget the largest usable saving is searched for.

    Args:
        model: an opened model, or a module.
        plan: what to do to each layer; or example inputs of the module, whose sizes count: a
            tensor, several in the order of ``forward``'s arguments, or by their names.
        calibrated: inputs from :func:`calibrate`: the layers' outputs are reproduced on them.
        progress: called with a task, the steps done and their number.
        settings: ``fuse`` and ``kernel_scale``; for int8 also ``calibrate``, ``seed`` and those
            about the input, for the inputs that ranges are measured on where ``calibrated`` is
            None; for a module all options.

    Raises:
        UsageError: options that contradict each other or the model, or unknown ones.
        UnsupportedError: a chosen layer has weights that are NaN or infinite, the model
            cannot be written in the plan's precision, or the module has
            no layer that can be split.
    """
    if _is_module(model):
        return _convert_module(model, plan, Settings.of(**settings), progress)
    if not isinstance(plan, Plan):
        raise TypeError(f"convert takes a plan, not {type(plan).__name__}: see dacconv.plan")
    from dacconv.jobs.decide import inputs_for_ranges

    values = Settings.of(**settings)
    return pipeline.convert(
        model,
        plan,
        values.split_options,
        calibrated=calibrated,
        inputs=inputs_for_ranges(model, values, plan, calibrated, progress),
        progress=progress,
    )


def _convert_module(
    net: nn.Module, example_inputs: Any, values: Settings, progress: Progress
) -> nn.Module:
    """A module converted as the command line would convert its file."""
    from dacconv.conversion.verdict import verdict_on
    from dacconv.formats.torch.module.memory import shapes_of, wrap
    from dacconv.jobs.convert import convert_model

    model = wrap(net, LoadOptions(input_shapes=shapes_of(net, example_inputs)))
    _, conversion = convert_model(model, values, progress=progress)
    for note in conversion.report.notes:
        if "BatchNorm" in note:
            warnings.warn(keywords(note), stacklevel=4)
    if values.verify:
        from dacconv.conversion.verification import verify as compare

        verdict = verdict_on(
            compare(model, conversion.model, values.check_options, progress=progress)
        )
        if verdict.level == "broken":
            warnings.warn(f"the converted network is broken: {verdict.reason}", stacklevel=4)
    return conversion.module


def _is_module(value: object) -> bool:
    """Whether this is a torch module, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


@in_keywords
def fuse(model: Model, progress: Progress = silent) -> Conversion:
    """Merge BatchNorm, parallel branches and chains into single convs, without loss.

    Raises:
        UnsupportedError: the file does not say which layer reads which.
    """
    pipeline.require_dataflow(model)
    return pipeline.convert(model, Plan(()), progress=progress)


@in_keywords
def verify(
    original: Model, converted: Model, *, progress: Progress = silent, **settings: Any
) -> Verification:
    """Run two models on the same inputs, alternating, and compare every output.

    Inputs are images drawn for the model, or the user's ``data``; see ``--data``.

    Args:
        original: the model before.
        converted: the model after.
        progress: called with a task, the steps done and their number.
        settings: ``samples``, ``seed``, ``threads``, ``data`` and those about the input.

    Raises:
        UnsupportedError: a model cannot be run, or the size of an input is not known.
    """
    from dacconv.conversion.verification import verify as compare

    return compare(original, converted, Settings.of(**settings).check_options, progress=progress)


@in_keywords
def bench(
    original: str | Path,
    *others: str | Path,
    options: LoadOptions | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Benchmark:
    """Measure time, memory and size of models side by side, each in its own process.

    >>> result = bench("resnet.onnx", "resnet.dac.onnx", batches=(1, 8), threads=(1, 2))
    >>> result.cases[0].timings[1].ratio

    Args:
        original: the model that the others are compared with.
        others: the other models; formats may differ.
        options: how the models are opened; fields of it may be given as keywords as well.
        progress: called with a task, the steps done and their number.
        settings: fields of :class:`~dacconv.timing.benchmark.run.Procedure`.

    Raises:
        UsageError: options that make no sense, or that a model does not allow.
        UnsupportedError: a model cannot be run; its process ended or gave no answer.
    """
    from dacconv.timing.benchmark.run import Procedure
    from dacconv.timing.benchmark.run import bench as bench_models

    names = [f.name for f in fields(Procedure)]
    opening = {name: value for name, value in settings.items() if name not in names}
    how = Procedure(**{name: value for name, value in settings.items() if name in names})
    opened = replace(options or LoadOptions(), **opening)
    return bench_models([Path(p) for p in (original, *others)], how, opened, progress=progress)


@in_keywords
def sweep(
    model: Model,
    *,
    ranks: Sequence[int] = (1, 2, 3, 4, 5),
    mode: str | Sequence[str] = "single",
    budgets: Sequence[float] = (),
    task: Task | None = None,
    data: tuple[Array, Array] | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Sweep:
    """Split a model in many ways and measure each against the original.

    >>> results = sweep(load("resnet.onnx"), ranks=range(1, 6), mode=("first-k", "last-k"))

    Args:
        model: an opened model.
        ranks: the ranks to try.
        mode: ``single``, ``first-k``, ``last-k``, ``uniform``, ``budget``, or several.
        budgets: shares of the MACs, for ``budget``.
        task: called with every model (see ``sweeps.tasks.Net``); returns a number, or a dict.
        data: images and labels for top-1.
        progress: called with a task, the steps done and their number.
        settings: options such as ``method``, ``layers``, ``samples``; and ``bench``, ``jobs``.

    Raises:
        UsageError: options that contradict each other or the model; ``task`` fails.
        UnsupportedError: the model has no layer that can be split.
    """
    from dacconv.calibration.inputs.user_data import with_labels
    from dacconv.sweeps.measure import SAMPLES, Setup
    from dacconv.sweeps.points import Grid
    from dacconv.sweeps.run import LayerOptions
    from dacconv.sweeps.run import sweep as run_sweep

    bench, jobs = bool(settings.pop("bench", False)), int(settings.pop("jobs", 1))
    values = Settings.of(**settings)
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    grid = Grid(modes, tuple(ranks), tuple(budgets), values.method)
    how = values.calibrate or grid.calibration
    check = values.check_options
    setup = Setup(
        check=replace(check, samples=values.samples or SAMPLES),
        split=values.split_options,
        calibration=replace(values.calibration_options, source=how),
        threads=values.threads,
        bench=bench,
        task=task,
        data=with_labels(*data, "data") if data else None,
    )
    chosen = LayerOptions(values.selection, values.allow_costlier)
    return run_sweep(model, grid, chosen, setup, jobs=jobs, progress=progress)
