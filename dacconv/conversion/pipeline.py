"""The one path: load, survey, plan, decompose, rewrite, verify, report, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacconv import __version__
from dacconv.conversion.report import Report
from dacconv.conversion.report_build import build_report, merging_of
from dacconv.conversion.splitting import rewrites, split_layer
from dacconv.decompositions import survey as survey_graph
from dacconv.decompositions.forms import AUTO, MULTIPLIER, possible
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats import open_model
from dacconv.formats.base import LoadOptions, Model
from dacconv.fusions.merged import MergedModel, merged
from dacconv.graph.types import Layer, Plan, Provenance
from dacconv.planning import Evidence, RankOptions, Selection, Times, select
from dacconv.planning.plans import bind, eligible_by, make_plan, methods_of
from dacconv.planning.spectra import OWN, Spectra
from dacconv.support.files import Digest, require_folder
from dacconv.support.progress import Progress, silent

if TYPE_CHECKING:  # plain DAC does without, and starts sooner for it
    from dacconv.calibration.inputs.pixels import InputOptions
    from dacconv.calibration.prepare import Calibrated
    from dacconv.timing import Speeds, Timer

WEIGHTS_ONLY = "weights"
GRAPH_FORMATS = ("onnx", "pt2")
"""Formats in which a split layer is operators of a graph, not layers that have names."""


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A converted model and the report of what was done; nothing is written yet."""

    model: Model
    report: Report
    plan: Plan

    def save(self, path: str | Path, *, force: bool = False) -> tuple[Path, ...]:
        """Write the model in the format that it came in; return every file written.

        Raises:
            UsageError: a file is there already and ``force`` is not given.
            WriteError: the operating system refuses.
        """
        target = Path(path)
        check_target(self.model, target, force=force)
        origin = self.report.provenance
        facts = {} if origin is None else _plain(origin)
        return self.model.save(target, provenance=facts, plan=self.plan)


def load(path: str | Path, options: LoadOptions | None = None, **more: Any) -> Model:
    """Open a checkpoint; ``more`` are fields of :class:`~dacconv.formats.base.LoadOptions`.

    >>> model = load("resnet.onnx")
    >>> model = load("vgg.pth", arch="nets.py:vgg16", input_shapes={"": (1, 3, 224, 224)})

    Raises:
        FormatError: not a file that dacconv reads; the message says what it is.
        UsageError: the options do not fit the file.
    """
    return open_model(Path(path), replace(options or LoadOptions(), **more))


def survey(model: Model, *, fuse: bool = True) -> tuple[Layer, ...]:
    """Every layer of the model that carries multiply-adds, eligible or with its reason.

    With ``fuse`` what can be merged without loss is one layer; see :func:`convert`.
    """
    return survey_graph(seen(model, fuse=fuse).graph())


def plan(
    model: Model,
    *,
    method: str = "dac",
    rank: int | None = None,
    ranks: Mapping[str, int] | None = None,
    energy: float | None = None,
    energy_over: str = "mean",
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    first_k: int | None = None,
    last_k: int | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    allow_costlier: bool = False,
    fuse: bool = True,
    kernel_scale: str = OWN,
    calibrated: Calibrated | None = None,
    form: str | None = None,
    speeds: Speeds | None = None,
    open_forms: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Choose a rank for each selected layer; exactly one way to choose is given.

    ``macs``, ``params`` and ``latency`` are budgets: the share of the original's that may be
    left. They minimise the damage that ``calibrated`` measures, or the squared kernel errors.

    ``form`` is how the split layers are written, see ``dacconv.decompositions.forms``; ``auto``
    takes the fastest, as predicted. By default that is ``auto``, and in state dicts and modules,
    where users meet the layers by name, ``multiplier``. With ``speeds`` from :func:`timer` forms
    are measured, a layer that does not get faster is left alone, and ``latency`` can be given; with
    those from :func:`lookup` they are predicted for another runtime or number of threads.
    ``open_forms`` leaves the forms to :func:`with_forms`.

    Raises:
        UsageError: options that contradict each other or the model.
        UnsupportedError: the model has no layer that can be split.
    """
    view = seen(model, fuse=fuse)
    rows = survey_graph(view.graph())
    require_eligible(rows, model.path)
    spectra = Spectra(view, rows, kernel_scale, progress)
    selection = Selection(first_k, last_k, tuple(layers), tuple(skip))
    methods = methods_of(method)
    damage = None
    budgeted = any(share is not None for share in (macs, params, latency))
    if calibrated is not None and budgeted:
        from dacconv.conversion.calibrated import measured_damage

        chosen = select(eligible_by(rows, methods), selection)
        damage = measured_damage(calibrated, chosen, methods, spectra)
    times = None
    if latency is not None:
        times = _times(model, rows, speeds, form, fuse=fuse)
    options = RankOptions(
        method=method,
        rank=rank,
        ranks=dict(ranks or {}),
        energy=energy,
        energy_over=energy_over,
        macs=macs,
        params=params,
        latency=latency,
        allow_costlier=allow_costlier,
    )
    made = make_plan(options, selection, Evidence(rows, spectra, damage, times))
    return made if open_forms else with_forms(model, made, rows, form, speeds)


def bind_plan(
    model: Model,
    given: Plan,
    *,
    where: str,
    allow_costlier: bool = False,
    fuse: bool = True,
    form: str | None = None,
    speeds: Speeds | None = None,
    open_forms: bool = False,
) -> Plan:
    """Hold a plan from a file against this model; see :func:`dacconv.planning.plans.bind`.

    ``form``, ``speeds`` and ``open_forms`` are about the forms that it leaves open, as in
    :func:`plan`.
    """
    rows = survey(model, fuse=fuse)
    require_eligible(rows, model.path)
    bound = bind(given, rows, where=where, allow_costlier=allow_costlier)
    return bound if open_forms else with_forms(model, bound, rows, form, speeds)


def timer(
    model: Model,
    *,
    target: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    timings: str | Path | None = None,
    fuse: bool = True,
    progress: Progress = silent,
) -> Timer:
    """What measures the layers of a model in the runtime that they will run in.

    ``target`` is ``onnxruntime`` or ``torch``, by default the one of the model's format.
    Times are kept in the file ``timings``, by default in the user's cache folder.

    Raises:
        UsageError: there is no such target or device.
    """
    from dacconv.support.machine import cores
    from dacconv.timing import Timer, target_for
    from dacconv.timing.cache import Cache, default_path

    where = target_for(model.format, target, threads, device, cores())
    path = Path(timings) if timings is not None else default_path()
    return Timer(seen(model, fuse=fuse), where, Cache(path), progress)


def lookup(model: Model, *, target: str | None = None, threads: int | None = None) -> Speeds:
    """Predicted times of the model's layers, for the runtime that will run them.

    Raises:
        UsageError: there is no such target.
    """
    from dacconv.support.machine import cores
    from dacconv.timing import PredictedSpeeds, target_for

    return PredictedSpeeds(target_for(model.format, target, threads, None, cores()))


def with_forms(
    model: Model, made: Plan, rows: Sequence[Layer], form: str | None, speeds: Speeds | None
) -> Plan:
    """The plan with the forms that it leaves open decided; see :func:`plan`."""
    from dacconv.timing.choose import choose_forms

    graph = model.format in GRAPH_FORMATS
    speeds = speeds or lookup(model)
    wanted = form or (AUTO if graph or speeds.measured else MULTIPLIER)
    asked = wanted != AUTO or any(c.form not in (AUTO, MULTIPLIER) for c in made.choices)

    def possible_forms(layer: Layer) -> tuple[str, ...]:
        return possible(model.constructs(len(layer.geometry.kernel), own_layers=asked))

    return choose_forms(
        made,
        rows,
        wanted,
        possible_forms,
        speeds,
        format=model.format,
    )


def _times(
    model: Model, rows: Sequence[Layer], speeds: Speeds | None, form: str | None, *, fuse: bool
) -> Times:
    from dacconv.timing import Timer
    from dacconv.timing.whole import layer_times

    if not isinstance(speeds, Timer):
        raise UsageError("--latency needs measured times", where="--latency", hint="give --tune")

    def carried_out(plan: Plan) -> Model:
        return convert(model, plan, fuse=fuse).model

    return layer_times(model, rows, speeds, form or AUTO, carried_out)


def convert(
    model: Model,
    plan: Plan,
    *,
    fuse: bool = True,
    kernel_scale: str = OWN,
    calibrated: Calibrated | None = None,
    options: Mapping[str, Any] | None = None,
    digest: Digest | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Carry out a plan. The model stays as it is; ``options`` go into the provenance.

    With ``fuse`` what can be merged without loss is merged, as far as the format allows.
    ``kernel_scale`` says in which scale of its output channels a kernel is split; see
    :data:`dacconv.planning.spectra.KERNEL_SCALES`. With ``calibrated`` (see :func:`calibrate`) the
    layers' outputs are reproduced, not only their kernels, wherever that does no harm.
    ``digest`` is that of the file, if it is being computed already.

    Raises:
        UnsupportedError: a chosen layer has weights that are NaN or infinite.
    """
    view = seen(model, fuse=fuse)
    graph = view.graph()
    rows = survey_graph(graph)
    layers, spectra = {layer.name: layer for layer in rows}, Spectra(view, rows, kernel_scale)
    constructs = model.constructs(2, own_layers=True)
    splits = {}
    for done, choice in enumerate(plan.choices):
        progress("splitting", done, len(plan.choices))
        splits[choice.layer] = split_layer(spectra, layers[choice.layer], choice)
    progress("splitting", len(plan.choices), len(plan.choices))
    changed = view.rewrite(rewrites(graph, list(splits.values()), constructs))
    calibration = None
    if calibrated is not None and plan.choices:
        from dacconv.conversion.calibrated import judge, rebuilt_splits

        chosen = [layers[choice.layer] for choice in plan.choices]
        better, told = rebuilt_splits(calibrated, chosen, splits)
        other = view.rewrite(rewrites(graph, list(better.values()), constructs))
        calibration = judge(calibrated, changed, other, told)
        if calibration.taken:
            changed, splits = other, better
    errors = {name: split.error for name, split in splits.items()}
    merging = merging_of(view)
    built = build_report(model.format, model.graph(), plan=plan, errors=errors, merging=merging)
    made = replace(
        built,
        calibration=calibration,
        provenance=Provenance(
            version=__version__,
            sha256=(digest or Digest(model.path)).of(*model.files),
            source=model.path.name,
            options=dict(options or {}),
        ),
    )
    return Conversion(changed, made, plan)


def calibrate(
    model: Model,
    how: str = "auto",
    *,
    options: InputOptions | None = None,
    fuse: bool = True,
    kernel_scale: str = OWN,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = silent,
) -> tuple[Calibrated | None, str]:
    """Inputs for a model that :func:`plan` and :func:`convert` measure on; and what they are.

    ``how`` is ``none``, ``synthetic``, ``distilled``, ``auto`` or the path of a folder of
    images or an array.

    Raises:
        UnsupportedError: the model does not allow that; never with ``auto``.
        UsageError: the path, or the options about the input, do not fit.
    """
    if how == "none":
        return None, "no calibration: weights only"
    from dacconv.calibration.inputs.pixels import InputOptions
    from dacconv.calibration.prepare import prepare

    return prepare(
        model,
        seen(model, fuse=fuse),
        how,
        options or InputOptions(),
        kernel_scale=kernel_scale,
        seed=seed,
        device=device,
        progress=progress,
    )


def inspect(model: Model) -> Report:
    """The report of a model as it is."""
    return build_report(model.format, model.graph())


def preview(model: Model, plan: Plan, *, fuse: bool = True) -> Report:
    """The report of a plan that is not carried out: costs, but no errors."""
    merging = merging_of(seen(model, fuse=fuse))
    return build_report(model.format, model.graph(), plan=plan, merging=merging)


def seen(model: Model, *, fuse: bool) -> Model | MergedModel:
    """The model as the policies and the split see it: merged, where that can be."""
    return merged(model) if fuse and model.format != WEIGHTS_ONLY else model


def require_eligible(layers: Sequence[Layer], path: Path) -> None:
    """Raise UnsupportedError, with the reasons counted, where no layer can be split."""
    if any(layer.skip is None for layer in layers):
        return
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer.skip or "", []).append(layer.name)
    told = "; ".join(f"{_names(names)}: {reason}" for reason, names in reasons.items())
    raise UnsupportedError(
        "no layer of this model can be split",
        where=str(path),
        hint=told or "it holds no conv and no linear layer",
    )


def require_dataflow(model: Model) -> None:
    """Raise UnsupportedError for a model whose file does not say what reads what."""
    if model.format == WEIGHTS_ONLY:
        raise UnsupportedError(
            "a state dict alone cannot be fused: it does not say which layer reads which",
            where=str(model.path),
            hint="name the network with --arch PACKAGE.MODULE:FACTORY or FILE.py:FACTORY",
        )


def default_target(path: Path) -> Path:
    """``<stem>.dac<suffix>`` beside the input."""
    return path.with_name(f"{path.stem}.dac{path.suffix}")


def check_target(model: Model, target: Path, *, force: bool) -> None:
    """Raise UsageError where writing ``target`` would lose something or cannot work."""
    if target.is_dir():
        raise UsageError("is a folder; name a file", where=str(target))
    require_folder(target)
    for path in (target, *model.side_files(target)):
        if any(path.exists() and path.samefile(mine) for mine in model.files):
            raise UsageError("is the input; it is never overwritten", where=str(path))
        if path.exists() and not force:
            raise UsageError(
                "exists already", where=str(path), hint="--force overwrites it, -o names another"
            )


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _plain(origin: Provenance) -> dict[str, Any]:
    return {
        "version": origin.version,
        "sha256": origin.sha256,
        "source": origin.source,
        "options": dict(origin.options),
    }
