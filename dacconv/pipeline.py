"""The one path: load, survey, plan, decompose, rewrite, verify, report, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dacconv import __version__, report
from dacconv.decompositions import METHODS, Factors
from dacconv.errors import UnsupportedError, UsageError
from dacconv.files import sha256
from dacconv.layers import survey as survey_graph
from dacconv.models import open_model
from dacconv.models.base import LoadOptions, Model
from dacconv.numerics.svd import ChannelSVD
from dacconv.plans import bind, make_plan
from dacconv.policies import RankOptions, Selection
from dacconv.progress import Progress, silent
from dacconv.report import LayerError, Report
from dacconv.types import FloatArray, Layer, Plan, Provenance, Rewrite


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
    """Open a checkpoint; ``more`` are fields of :class:`~dacconv.models.base.LoadOptions`.

    >>> model = load("resnet.onnx")
    >>> model = load("vgg.pth", arch="nets.py:vgg16", input_shapes={"": (1, 3, 224, 224)})

    Raises:
        FormatError: not a file that dacconv reads; the message says what it is.
        UsageError: the options do not fit the file.
    """
    return open_model(Path(path), replace(options or LoadOptions(), **more))


def survey(model: Model) -> tuple[Layer, ...]:
    """Every layer of the model that carries multiply-adds, eligible or with its reason."""
    return survey_graph(model.graph())


def plan(
    model: Model,
    *,
    rank: int | None = None,
    ranks: Mapping[str, int] | None = None,
    energy: float | None = None,
    energy_over: str = "mean",
    first_k: int | None = None,
    last_k: int | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    allow_costlier: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Choose a rank for each selected layer; exactly one of rank, ranks and energy is given.

    Raises:
        UsageError: options that contradict each other or the model.
        UnsupportedError: the model has no layer that can be split.
    """
    rows = survey(model)
    require_eligible(rows, model)
    return make_plan(
        rows,
        RankOptions(rank=rank, ranks=dict(ranks or {}), energy=energy, energy_over=energy_over),
        Selection(first_k, last_k, tuple(layers), tuple(skip)),
        Spectra(model, rows, progress),
        allow_costlier=allow_costlier,
    )


def bind_plan(model: Model, given: Plan, *, where: str, allow_costlier: bool = False) -> Plan:
    """Hold a plan from a file against this model; see :func:`dacconv.plans.bind`."""
    rows = survey(model)
    require_eligible(rows, model)
    return bind(given, rows, where=where, allow_costlier=allow_costlier)


def convert(
    model: Model,
    plan: Plan,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Carry out a plan. The model stays as it is; ``options`` go into the provenance.

    Raises:
        UnsupportedError: a chosen layer has weights that are NaN or infinite.
    """
    graph = model.graph()
    layers = {layer.name: layer for layer in survey_graph(graph)}
    rewrites: list[Rewrite] = []
    errors: dict[str, LayerError] = {}
    for done, choice in enumerate(plan.choices):
        progress("splitting", done, len(plan.choices))
        layer, method = layers[choice.layer], METHODS[choice.method]
        weight = finite_weight(model, layer)
        factors = method.factor(weight, method.decompose(weight), choice.rank)
        stored = Factors(
            tuple(array.astype(weight.dtype) for array in factors.arrays), factors.relative_error
        )
        errors[layer.name] = LayerError(factors.relative_error)
        rewrites += [
            Rewrite(
                target=site,
                source=graph.node(site).inputs[0],
                branches=method.assemble(model.conv(site), stored),
                reason=f"{method.name} rank {choice.rank}",
            )
            for site in layer.sites
        ]
    progress("splitting", len(plan.choices), len(plan.choices))
    origin = Provenance(
        version=__version__,
        sha256=sha256(*model.files),
        source=model.path.name,
        options=dict(options or {}),
    )
    made = replace(report.build(model.format, graph, plan=plan, errors=errors), provenance=origin)
    return Conversion(model.rewrite(rewrites) if rewrites else model, made, plan)


def inspect(model: Model) -> Report:
    """The report of a model as it is."""
    return report.build(model.format, model.graph())


def preview(model: Model, plan: Plan) -> Report:
    """The report of a plan that is not carried out: costs, but no errors."""
    return report.build(model.format, model.graph(), plan=plan)


@dataclass(frozen=True, slots=True, eq=False)
class Spectra:
    """The singular values of a model's layers, computed when a policy asks for them."""

    model: Model
    layers: Sequence[Layer]
    progress: Progress = silent

    def __call__(self, name: str) -> ChannelSVD:
        """The decomposition of the layer of that name."""
        names = [layer.name for layer in self.layers]
        index = names.index(name)
        self.progress("measuring kernels", index, len(names))
        return METHODS["dac"].decompose(finite_weight(self.model, self.layers[index]))


def finite_weight(model: Model, layer: Layer) -> FloatArray:
    """The layer's kernel; UnsupportedError where it holds NaN or infinite values."""
    weight = model.conv(layer.sites[0]).weight
    bad = weight.size - int(np.isfinite(weight).sum())
    if bad:
        raise UnsupportedError(
            f"layer {layer.name}: {bad} of {weight.size} weights are NaN or infinite",
            where=str(model.path),
            hint=f"the checkpoint is broken there; --skip '{layer.name}' leaves the layer alone",
        )
    return weight


def require_eligible(layers: Sequence[Layer], model: Model) -> None:
    """Raise UnsupportedError, with the reasons counted, where no layer can be split."""
    if any(layer.skip is None for layer in layers):
        return
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer.skip or "", []).append(layer.name)
    told = "; ".join(f"{_names(names)}: {reason}" for reason, names in reasons.items())
    raise UnsupportedError(
        "no layer of this model can be split",
        where=str(model.path),
        hint=told or "it holds no conv and no linear layer",
    )


def default_target(path: Path) -> Path:
    """``<stem>.dac<suffix>`` beside the input."""
    return path.with_name(f"{path.stem}.dac{path.suffix}")


def check_target(model: Model, target: Path, *, force: bool) -> None:
    """Raise UsageError where writing ``target`` would lose something or cannot work."""
    if target.is_dir():
        raise UsageError("is a folder; name a file", where=str(target))
    if not target.parent.is_dir():
        raise UsageError("its folder does not exist", where=str(target), hint="make it first")
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
