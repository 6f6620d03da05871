"""The one path: load, survey, plan, decompose, rewrite, verify, report, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dacconv import __version__
from dacconv.conversion.report import Report
from dacconv.conversion.report_build import build_report, merging_of
from dacconv.conversion.splitting import rewrites, split_layer
from dacconv.decompositions import ALL, Method
from dacconv.decompositions import survey as survey_graph
from dacconv.decompositions.forms import AUTO, MULTIPLIER, possible
from dacconv.errors import UnsupportedError, UsageError
from dacconv.formats.base import InMemory, Model
from dacconv.fusions.merged import MergedModel, merged_model
from dacconv.graph.precision import INT8
from dacconv.graph.types import Choice, Graph, Layer, Plan, Provenance
from dacconv.planning import Damage, Evidence, RankOptions, Selection, Times, select
from dacconv.planning.plans import ANY_METHOD, bind, make_plan, methods_of
from dacconv.planning.ranks import named_methods
from dacconv.planning.spectra import OWN, Spectra, SplitOptions
from dacconv.support.files import Digest
from dacconv.support.outputs import Output, check_outputs
from dacconv.support.progress import Progress, silent

if TYPE_CHECKING:  # plain DAC does without them, and starts sooner
    from torch import nn

    from dacconv.calibration.prepare import Calibrated, CalibrationOptions
    from dacconv.conversion.range_inputs import RangeInputs
    from dacconv.timing import Speeds, Timer
    from dacconv.timing.speeds import TimingOptions

EVERY_LAYER, AS_TRAINED = Selection(), SplitOptions()


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A converted model and the report of what was done; nothing is written yet."""

    model: Model
    report: Report
    plan: Plan

    @property
    def module(self) -> nn.Module:
        """The converted torch module, of a module or of a state dict with its network.

        Raises:
            UnsupportedError: the model is of another format.
        """
        module = getattr(self.model, "module", None)
        if module is None:
            raise UnsupportedError(
                f"a model of the format {self.model.format} is no torch module",
                hint="save() writes it in its own format",
            )
        return cast("nn.Module", module)

    def save(self, path: str | Path, *, force: bool = False) -> tuple[Path, ...]:
        """Write the model in the format that it came in; return every file written.

        Raises:
            UsageError: a file is there already and ``force`` is not given.
            WriteError: the operating system refuses.
        """
        target = Path(path)
        check_target(self.model, target, force=force)
        origin = self.report.provenance
        facts = {} if origin is None else asdict(origin)
        return self.model.save(target, provenance=facts, plan=self.plan)


def survey(
    model: Model, *, fuse: bool = True, methods: Sequence[Method] = ALL
) -> tuple[Layer, ...]:
    """Every layer of the model that carries multiply-adds, eligible or with its reason.

    A layer is eligible if one of the methods can split it. With ``fuse`` everything that can be
    merged without loss is one layer; see :func:`convert`.
    """
    return survey_graph(view_of(model, fuse=fuse).graph(), methods)


def plan(
    model: Model,
    ranks: RankOptions,
    selection: Selection = EVERY_LAYER,
    split: SplitOptions = AS_TRAINED,
    *,
    calibrated: Calibrated | None = None,
    speeds: Speeds | None = None,
    progress: Progress = silent,
) -> Plan:
    """Choose a method, a rank and a form for each selected layer.

    A budget among ``ranks`` minimises the damage that ``calibrated`` measures, else the squared
    kernel errors. With ``speeds`` that are measured (see :func:`timer`) a layer that does not get
    faster is left alone, and a budget of time can be given.

    Raises:
        UsageError: options that contradict each other or the model.
        UnsupportedError: the model has no layer that can be split.
    """
    chosen = choose(
        model, ranks, selection, split, calibrated=calibrated, speeds=speeds, progress=progress
    )
    return with_forms(model, chosen, split, speeds)


def choose(
    model: Model,
    ranks: RankOptions,
    selection: Selection,
    split: SplitOptions,
    *,
    calibrated: Calibrated | None = None,
    speeds: Speeds | None = None,
    damage: Damage | None = None,
    progress: Progress = silent,
) -> Plan:
    """As :func:`plan`, with the forms left open. A budget minimises ``damage`` if it is given."""
    require_floating(model)
    view = view_of(model, fuse=split.fuse)
    methods = methods_of(ranks.method, budgeted=ranks.budgeted)
    layers = survey_graph(view.graph(), (*methods, *named_methods(ranks.ranks)))
    require_eligible(layers, model.path)
    spectra = Spectra(view, layers, split.kernel_scale, progress)
    times, faster = None, None
    any_method = ranks.budgeted and ranks.method in (None, ANY_METHOD)
    if any_method and ranks.latency is None:
        faster = _predicted_faster(model)
    if calibrated is not None and ranks.budgeted:
        from dacconv.conversion.calibrated import measured_damage

        damage = measured_damage(calibrated, select(layers, selection), methods, spectra)
    if ranks.latency is not None:
        times = _times(model, layers, methods, split, speeds)
    evidence = Evidence(layers, spectra, damage, times, faster)
    if calibrated is None or not any_method:
        return make_plan(ranks, selection, evidence)
    from dacconv.conversion.mixtures import candidate_plans, least_harm

    def chosen_from(names: str | None) -> Plan:
        return make_plan(replace(ranks, method=names), selection, evidence)

    plans = candidate_plans(chosen_from, model, calibrated)
    return least_harm(plans, calibrated, split.kernel_scale, progress)


def _predicted_faster(model: Model) -> Callable[[Layer, Choice], bool]:
    """Whether a split is predicted to be faster than its layer, in its fastest form."""
    from dacconv.timing.whole import forms_of

    speeds = predicted_speeds(model)

    def faster(layer: Layer, choice: Choice) -> bool:
        ratios = speeds(layer, choice, forms_of(model, layer, choice, AUTO))
        return not ratios or min(ratios.values()) < 1

    return faster


def bind_plan(
    model: Model, plan: Plan, *, where: str, allow_costlier: bool = False, fuse: bool = True
) -> Plan:
    """Check a plan from a file against this model; see :func:`dacconv.planning.plans.bind`.

    The forms that it leaves open stay open.
    """
    require_floating(model)
    layers = survey(model, fuse=fuse)
    if plan.choices or plan.precision is None:
        require_eligible(layers, model.path)
    return bind(plan, layers, where=where, allow_costlier=allow_costlier)


def with_forms(
    model: Model, plan: Plan, split: SplitOptions = AS_TRAINED, speeds: Speeds | None = None
) -> Plan:
    """The plan with the forms that it leaves open decided.

    ``split.form`` is the form to take; ``auto`` takes the fastest one. The default is ``auto``,
    but the paper's ``multiplier`` for a model whose layers users know by name, unless times are
    measured.
    """
    from dacconv.timing.choose import choose_forms

    speeds = speeds or predicted_speeds(model)
    form = split.form or (MULTIPLIER if model.named_layers and not speeds.measured else AUTO)
    explicit = form != AUTO or any(c.form not in (AUTO, MULTIPLIER) for c in plan.choices)

    def possible_forms(layer: Layer) -> tuple[str, ...]:
        return possible(model.constructs(len(layer.geometry.kernel), own_layers=explicit))

    layers = survey(model, fuse=split.fuse)
    return choose_forms(plan, layers, form, possible_forms, speeds, format=model.format)


def timer(
    model: Model, options: TimingOptions, *, fuse: bool = True, progress: Progress = silent
) -> Timer:
    """What measures the layers of a model in the runtime that they will run in.

    Times are kept in the file ``options.timings``, by default in the user's cache folder.

    Raises:
        UsageError: there is no such target or device.
    """
    from dacconv.timing import Timer, target_for
    from dacconv.timing.cache import Cache, default_path

    target = target_for(model.engine, options)
    return Timer(
        view_of(model, fuse=fuse), target, Cache(options.timings or default_path()), progress
    )


def predicted_speeds(model: Model, options: TimingOptions | None = None) -> Speeds:
    """Predicted times of the model's layers, for the runtime that will run them.

    Raises:
        UsageError: there is no such target.
    """
    from dacconv.timing import PredictedSpeeds, target_for
    from dacconv.timing.speeds import TimingOptions

    options = options or TimingOptions()
    return PredictedSpeeds(target_for(model.engine, replace(options, device=None)))


def convert(
    model: Model,
    plan: Plan,
    split: SplitOptions = AS_TRAINED,
    *,
    calibrated: Calibrated | None = None,
    inputs: RangeInputs | None = None,
    recorded: Mapping[str, Any] | None = None,
    digest: Digest | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Carry out a plan. The model stays as it is; ``recorded`` options go into the provenance.

    Everything that can be merged without loss is merged, unless ``split.fuse`` is false. With
    ``calibrated`` (see :func:`calibrate`) the layers' outputs are reproduced, not only their
    kernels, wherever that does no harm. A plan with int8 needs ``inputs``, by default those of
    ``calibrated`` (see ``conversion.precision.range_inputs``). ``digest`` is that of the file, if
    it is being computed.

    Raises:
        UnsupportedError: a chosen layer has weights that are NaN or infinite; the model cannot be
            written in the plan's precision.
    """
    require_floating(model)
    view = view_of(model, fuse=split.fuse)
    graph = view.graph()
    layers = {layer.name: layer for layer in survey_graph(graph)}
    spectra = Spectra(view, list(layers.values()), split.kernel_scale)
    constructs = model.constructs(2, own_layers=True)
    splits = {}
    for count, choice in enumerate(plan.choices):
        progress("splitting", count, len(plan.choices))
        splits[choice.layer] = split_layer(spectra, layers[choice.layer], choice)
    progress("splitting", len(plan.choices), len(plan.choices))
    converted = view.rewrite(rewrites(graph, list(splits.values()), constructs))
    calibration = None
    if calibrated is not None and plan.choices:
        from dacconv.conversion.calibrated import judge, rebuilt_splits

        chosen = [layers[choice.layer] for choice in plan.choices]
        better, how = rebuilt_splits(calibrated, chosen, splits)
        rebuilt = view.rewrite(rewrites(graph, list(better.values()), constructs))
        calibration = judge(calibrated, converted, rebuilt, how)
        if calibration.taken:
            converted, splits = rebuilt, better
    errors = {name: split.error for name, split in splits.items()}
    merging = merging_of(view)
    lowered = None
    if plan.precision is not None:
        from dacconv.conversion.precision import in_precision

        site = (graph, list(layers.values()))
        converted, plan, lowered = in_precision(converted, plan, site, inputs, calibrated, progress)
    report = build_report(
        model.format, model.graph(), plan=plan, errors=errors, merging=merging, lowered=lowered
    )
    origin = Provenance(
        version=__version__,
        sha256=(
            model.sha256
            if isinstance(model, InMemory)
            else (digest or Digest(model.path)).of(*model.files)
        ),
        source=model.path.name,
        options=dict(recorded or {}),
    )
    notes = (*report.notes, *_training_notes(model, graph))
    report = replace(report, calibration=calibration, provenance=origin, notes=notes)
    return Conversion(converted, report, plan)


def _training_notes(model: Model, merged: Graph) -> Sequence[str]:
    """A warning where a module loses every BatchNorm, which its training relied on."""

    def norms(graph: Graph) -> int:
        return sum("BatchNorm" in node.kind for node in graph.nodes)

    if model.engine != "torch.nn" or not norms(model.graph()) or norms(merged):
        return ()
    return (
        "every BatchNorm was merged: fine for inference; to train the result further, convert with "
        "--no-fuse, which keeps them, or train with a small learning rate",
    )


def calibrate(
    model: Model,
    options: CalibrationOptions,
    split: SplitOptions = AS_TRAINED,
    progress: Progress = silent,
) -> tuple[Calibrated | None, str]:
    """Inputs that :func:`plan` and :func:`convert` measure a model on; and what they are.

    Raises:
        UnsupportedError: the model does not allow that; never with ``auto``.
        UsageError: the path, or the options about the input, do not fit.
    """
    if options.source == "none":
        return None, "no calibration: weights only"
    from dacconv.calibration.prepare import prepare

    return prepare(model, view_of(model, fuse=split.fuse), options, split.kernel_scale, progress)


def inspect(model: Model) -> Report:
    """The report of a model as it is."""
    return build_report(model.format, model.graph())


def preview(model: Model, plan: Plan, *, fuse: bool = True) -> Report:
    """The report of a plan that is not carried out: costs, but no errors."""
    merging = merging_of(view_of(model, fuse=fuse))
    return build_report(model.format, model.graph(), plan=plan, merging=merging)


def view_of(model: Model, *, fuse: bool) -> Model | MergedModel:
    """The model as the policies and the split see it: merged, where that can be."""
    return merged_model(model) if fuse and model.has_dataflow else model


def _times(
    model: Model,
    layers: Sequence[Layer],
    methods: Sequence[Method],
    split: SplitOptions,
    speeds: Speeds | None,
) -> Times:
    from dacconv.timing import Timer
    from dacconv.timing.whole import layer_times

    if not isinstance(speeds, Timer):
        raise UsageError("--latency needs measured times", where="--latency", hint="give --tune")

    def converted(plan: Plan) -> Model:
        return convert(model, plan, replace(split, kernel_scale=OWN)).model

    return layer_times(model, layers, methods, speeds, split.form or AUTO, converted)


def require_eligible(layers: Sequence[Layer], path: Path) -> None:
    """Raise UnsupportedError, with the reasons counted, where no layer can be split."""
    if any(layer.skip is None for layer in layers):
        return
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer.skip or "", []).append(layer.name)
    summary = "; ".join(f"{_names(names)}: {reason}" for reason, names in reasons.items())
    raise UnsupportedError(
        "no layer of this model can be split",
        where=str(path),
        hint=summary or "it holds no conv and no linear layer",
    )


def require_floating(model: Model) -> None:
    """Raise UnsupportedError for a model in which all convolutions have integer weights."""
    convs = [node for node in model.graph().nodes if node.op == "conv"]
    if not convs or any(node.precision != INT8 for node in convs):
        return
    kinds = sorted({node.kind for node in convs})
    behind = " behind DequantizeLinear" if kinds == ["Conv"] else ""
    raise UnsupportedError(
        f"a quantised model: all {len(convs)} of its convolutions have integer weights "
        f"({', '.join(kinds)}{behind})",
        where=str(model.path),
        hint="convert the floating-point model that it was made from; --precision int8 quantises",
    )


def require_dataflow(model: Model) -> None:
    """Raise UnsupportedError for a model whose file does not say what reads what."""
    if not model.has_dataflow:
        raise UnsupportedError(
            "a state dict alone cannot be fused: it does not say which layer reads which",
            where=str(model.path),
            hint="name the network with --arch PACKAGE.MODULE:FACTORY or FILE.py:FACTORY",
        )


def default_target(path: Path) -> Path:
    """``<stem>.dac<suffix>`` beside the input."""
    return path.with_name(f"{path.stem}.dac{path.suffix}")


def check_target(
    model: Model,
    target: Path,
    *,
    force: bool,
    others: Sequence[Output] = (),
    inputs: Sequence[Path] = (),
) -> None:
    """Raise UsageError where writing ``target`` and ``others`` would lose something.

    ``others`` are what the command writes besides the model, ``inputs`` what it reads besides it.
    """
    files = [Output(path, "-o") for path in (target, *model.side_files(target))]
    check_outputs([*files, *others], [*model.files, *inputs], force=force)


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
