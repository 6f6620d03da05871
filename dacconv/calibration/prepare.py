"""A model prepared for calibration: its inputs, the damage of splits, and fitted factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from dacconv.calibration import study
from dacconv.calibration.descent import MAX_MACS, in_full, model_macs, tuned
from dacconv.calibration.inputs.families import (
    IMAGES,
    Inputs,
    synthetic_inputs,
    with_distilled_images,
    with_more_images,
)
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.reading import read_inputs
from dacconv.calibration.study import Price, Rebuilt, Target
from dacconv.decompositions import Factors
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Model, Walkable
from dacconv.formats.inputs import reason_not_runnable
from dacconv.fusions.merged import MergedModel
from dacconv.graph.types import Choice, FloatArray, Layer, Node
from dacconv.planning.spectra import Spectra
from dacconv.support.progress import Progress
from dacconv.support.threads import fixed_torch_threads

STEPS = 120
"""The approximate steps of one distillation, to estimate its effort."""
MIN_DISTILLED = 16
"""The least number of images that are worth distilling."""
SOURCES = ("none", "synthetic", "distilled", "auto")
"""The values of ``--calibrate`` other than a path."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """The inputs that a model is calibrated on.

    ``source`` is one of ``SOURCES`` (``auto`` takes the best that the model allows), or the path
    of a folder of images or of an array. ``input`` is what the user states about the model's
    input, ``device`` the torch device for distillation and gradient descent.
    """

    source: str = "auto"
    input: InputOptions = field(default_factory=InputOptions)
    seed: int = 0
    device: str | None = None


@runtime_checkable
class Distillable(Protocol):
    """A model that can change images until they have the statistics stored in its BatchNorms."""

    def distil(
        self,
        source: str,
        images: FloatArray,
        *,
        low: FloatArray,
        high: FloatArray,
        device: str | None,
        progress: Progress,
    ) -> FloatArray | None:
        """The images after gradient descent; None where the model has no BatchNorm to match."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A model with its calibration inputs; ``flat`` is the merged model in the form that is run."""

    view: Model | MergedModel
    flat: Model
    inputs: Inputs
    kernel_scale: str
    seed: int
    device: str | None
    progress: Progress
    _priced: dict[object, dict[str, Price]] = field(default_factory=dict, init=False)

    @fixed_torch_threads()
    def prices(
        self, layers: Sequence[Layer], choices: Mapping[str, Sequence[Choice]]
    ) -> dict[str, Price]:
        """The damage of each split of each layer, without the layers that cannot be measured.

        The same question is answered from memory: several budgets ask it of one calibration.
        """
        key = tuple((layer.name, tuple(choices[layer.name])) for layer in layers)
        if key not in self._priced:
            self._priced[key] = self._measure_prices(layers, choices)
        return self._priced[key]

    def _measure_prices(
        self, layers: Sequence[Layer], choices: Mapping[str, Sequence[Choice]]
    ) -> dict[str, Price]:
        targets = self.targets(layers)
        spectra = Spectra(self.view, layers, self.kernel_scale, self.progress)
        plain = {t.name: {c: spectra.factors(c) for c in choices[t.name]} for t in targets}
        return study.price(_walkable(self.flat), targets, plain, self.inputs, self.progress)

    @fixed_torch_threads()
    def rebuilt(
        self,
        layers: Sequence[Layer],
        plain: Mapping[str, tuple[str, Factors]],
        *,
        tune: bool = True,
    ) -> tuple[dict[str, Rebuilt], str]:
        """The fitted factors of each layer, and a description of how they were obtained.

        ``plain`` holds the method and the plain factors of each layer. Layers that cannot be
        measured are missing from the result. With ``tune`` all factors are tuned together after
        that, where it helps; without, the fits are brief.
        """
        targets = self.targets(layers)
        model, inputs = self.flat, self.inputs
        briefly = not tune or in_full(model, inputs)
        rebuilt = study.rebuild(
            _walkable(model), targets, plain, inputs, self.progress, brief=briefly
        )
        if not tune:
            return rebuilt, "the factors were not tuned together"
        return tuned(
            self.flat,
            targets,
            rebuilt,
            self.inputs,
            device=self.device,
            seed=self.seed,
            progress=self.progress,
        )

    @fixed_torch_threads()
    def harm(self, converted: Model) -> tuple[float, ...]:
        """Relative squared output error on the held-out half, then on each judging family."""
        original, changed = self.flat.runner(), converted.runner()
        errors = []
        for family in (self.inputs.held, *self.inputs.judges):
            pairs = [(original(feeds), changed(feeds)) for feeds in family]
            errors.append(study.relative_error([a for a, _ in pairs], [b for _, b in pairs]))
        return tuple(errors)

    def targets(self, layers: Sequence[Layer]) -> list[Target]:
        """The layers that can be measured, in order of execution.

        They are convs without groups that have one call site, and one conv in the model that is
        run.
        """
        outputs = {node.name: node.output for node in self.view.graph().nodes}
        nodes = self.flat.graph().nodes
        by_output = {node.output: node for node in nodes if node.op == "conv"}
        by_name = {node.name: node for node in nodes if node.op == "conv"}
        order = {node.name: index for index, node in enumerate(nodes)}
        targets: list[Target] = []
        for layer in layers:
            site = layer.sites[0]
            node = by_output.get(outputs[site]) or by_name.get(site)
            if len(layer.sites) == 1 and node is not None and self._has_same_shape(node, site):
                target = Target(layer.name, node.name, self.flat.conv(node.name))
                if target.narrow and target.conv.groups == 1:
                    targets.append(target)
        return sorted(targets, key=lambda target: order[target.node])

    def _has_same_shape(self, node: Node, site: str) -> bool:
        return self.flat.conv(node.name).weight.shape == self.view.conv(site).weight.shape


@fixed_torch_threads()
def prepare(
    model: Model,
    view: Model | MergedModel,
    options: CalibrationOptions,
    kernel_scale: str,
    progress: Progress,
) -> tuple[Calibrated | None, str]:
    """The model with its calibration inputs, or None, and a description of the inputs.

    Where there is None, the description says why the model cannot be calibrated.

    Raises:
        UnsupportedError: the model does not allow the requested inputs; never with ``auto``.
    """
    automatic = options.source == "auto"
    reason = reason_not_runnable(model)
    if reason is None and not isinstance(model, Walkable):
        reason = "a model of this format cannot be run layer by layer"
    if reason is not None:
        if automatic:
            return None, f"no calibration: {reason}"
        raise UnsupportedError(f"cannot calibrate: {reason}", where=str(model.path))
    try:
        inputs = choose_inputs(model, options, progress)
    except UnsupportedError as error:
        if automatic:
            return None, f"no calibration: {error.what}"
        raise
    flat = view.rewrite([]) if isinstance(view, MergedModel) else view
    calibrated = Calibrated(
        view, flat, inputs, kernel_scale, options.seed, options.device, progress
    )
    return calibrated, inputs.description


def choose_inputs(model: Model, options: CalibrationOptions, progress: Progress) -> Inputs:
    """The inputs that the options ask for; UnsupportedError where the model does not allow them."""
    source, images = options.source, options.input.images
    if source not in SOURCES:
        return _user_inputs(model, options, progress)
    count, refusal = 0, ""
    try:
        count = 0 if source == "synthetic" else _distillable_count(model, images)
    except UnsupportedError as error:
        refusal = error.what
    if source == "distilled" and not count:
        raise UnsupportedError(
            f"cannot distil images: {refusal}",
            where=str(model.path),
            hint="--calibrate synthetic works without BatchNorm and without gradients",
        )
    if source == "auto" and count and count < MIN_DISTILLED and images is None:
        refusal, count = "distilling images would take long; --calibrate distilled does it", 0
    progress("drawing images", 0, 1)
    most = max(count, MIN_DISTILLED) if count else images or IMAGES["synthetic"]
    inputs, scale = synthetic_inputs(model, options.input, options.seed, most)
    progress("drawing images", 1, 1)
    if count:
        bounds = scale.offset, scale.gain + scale.offset
        try:
            distilled = _distil(model, inputs, inputs.images, bounds, options.device, progress)
        except UnsupportedError as error:
            refusal = error.what
        else:
            return with_distilled_images(inputs, distilled, model, options.seed)
    if source == "distilled":
        raise UnsupportedError(f"cannot distil images: {refusal}", where=str(model.path))
    notes = (*inputs.notes, f"not distilled: {refusal}") if refusal else inputs.notes
    return replace(inputs, notes=notes)


def _user_inputs(model: Model, options: CalibrationOptions, progress: Progress) -> Inputs:
    """The user's inputs with distilled images added, or synthetic ones where that fails."""
    try:
        count = _distillable_count(model, None)
    except UnsupportedError:
        count = 0
    count = count if count >= MIN_DISTILLED else 0
    path, seed = Path(options.source), options.seed
    inputs, images = read_inputs(model, path, options.input, seed, count or IMAGES["synthetic"])
    if count:
        axes = (0, *range(2, images.ndim))
        bounds = inputs.images.min(axes), inputs.images.max(axes)
        try:
            distilled = _distil(model, inputs, images, bounds, options.device, progress)
        except UnsupportedError:
            pass
        else:
            return with_more_images(inputs, distilled, "distilled", model, seed)
    return with_more_images(inputs, images, "synthetic", model, seed)


def _distillable_count(model: Model, images: int | None) -> int:
    """How many images to distil: ``images``, or as many as are affordable.

    Raises:
        UnsupportedError: images cannot be distilled from this model.
    """
    if not isinstance(model, Distillable):
        raise UnsupportedError("a model of this format gives no gradients")
    if not any("BatchNorm" in node.kind for node in model.graph().nodes):
        raise UnsupportedError("there is no BatchNorm with stored statistics")
    if images is not None:
        return images
    return max(1, min(IMAGES["distilled"], MAX_MACS // max(3 * STEPS * model_macs(model), 1)))


def _distil(
    model: Model,
    inputs: Inputs,
    images: FloatArray,
    bounds: tuple[FloatArray, FloatArray],
    device: str | None,
    progress: Progress,
) -> FloatArray:
    """Images distilled from ``images``, within ``bounds`` (low, high) per channel.

    Raises:
        UnsupportedError: images cannot be distilled from this model.
    """
    if not isinstance(model, Distillable):
        raise UnsupportedError("a model of this format gives no gradients")
    if inputs.image_input.channels_last:
        raise UnsupportedError("its channels come last")
    low, high = bounds
    source = inputs.image_input.spec.name
    distilled = model.distil(source, images, low=low, high=high, device=device, progress=progress)
    if distilled is None:
        raise UnsupportedError("there is no BatchNorm that can be differentiated through")
    return distilled


def _walkable(model: Model) -> Walkable:
    if not isinstance(model, Walkable):
        raise UnsupportedError("a model of this format cannot be run layer by layer")
    return model
