"""From a model and a way to calibrate to what is measured on, and to the layers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from dacconv.calibration import study
from dacconv.calibration.descent import EFFORT, in_full, model_macs, tuned
from dacconv.calibration.inputs.families import IMAGES, Inputs, beside, replaced, synthetic
from dacconv.calibration.inputs.pixels import InputOptions
from dacconv.calibration.inputs.reading import read_path
from dacconv.calibration.inputs.slots import Slot
from dacconv.calibration.study import Price, Rebuilt, Target
from dacconv.decompositions import Factors
from dacconv.errors import UnsupportedError
from dacconv.formats.base import Model, Walkable
from dacconv.formats.inputs import reason_not_runnable
from dacconv.fusions.merged import MergedModel
from dacconv.graph.types import Choice, FloatArray, Layer, Node
from dacconv.planning.spectra import Spectra
from dacconv.support.progress import Progress

STEPS = 120
"""Steps of distillation that an adapter takes, about; for the estimate of the effort."""
FEWEST = 16
"""Images below which distillation is not worth its while."""
WAYS = ("none", "synthetic", "distilled", "auto")
"""What ``--calibrate`` takes besides a path."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What a model is calibrated on.

    ``how`` is one of ``WAYS`` (``auto`` takes the best that the model allows), or the path of a
    folder of images or of an array. ``input`` is what the user says about the model's input,
    ``device`` where images are distilled.
    """

    how: str = "auto"
    input: InputOptions = field(default_factory=InputOptions)
    seed: int = 0
    device: str | None = None


@runtime_checkable
class Distillable(Protocol):
    """A model that can move images until its BatchNorms see what they have stored."""

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
        """The images after the descent; None where the model has no BatchNorm to match."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A model ready to be measured: ``flat`` is the merged model as it is run."""

    view: Model | MergedModel
    flat: Model
    inputs: Inputs
    kernel_scale: str
    seed: int
    device: str | None
    progress: Progress

    def prices(
        self, layers: Sequence[Layer], choices: Mapping[str, Sequence[Choice]]
    ) -> dict[str, Price]:
        """The damage of each split of each layer; layers that cannot be measured are missing."""
        targets = self.targets(layers)
        spectra = Spectra(self.view, layers, self.kernel_scale, self.progress)
        plain = {t.name: {c: spectra.factors(c) for c in choices[t.name]} for t in targets}
        return study.price(_walkable(self.flat), targets, plain, self.inputs, self.progress)

    def rebuilt(
        self, layers: Sequence[Layer], plain: Mapping[str, tuple[str, Factors]]
    ) -> tuple[dict[str, Rebuilt], str]:
        """The factors of each layer, and in words how they were obtained.

        ``plain`` holds the method and the plain factors of each layer. Layers that cannot be
        measured are missing.
        """
        targets = self.targets(layers)
        model, inputs = self.flat, self.inputs
        rebuilt = study.rebuild(
            _walkable(model), targets, plain, inputs, self.progress, tuned=in_full(model, inputs)
        )
        return tuned(
            self.flat,
            targets,
            rebuilt,
            self.inputs,
            device=self.device,
            seed=self.seed,
            progress=self.progress,
        )

    def harm(self, converted: Model) -> tuple[float, float | None]:
        """Relative squared output error on the held-out half and on the second family."""
        original, changed = self.flat.runner(), converted.runner()
        found = []
        for family in (self.inputs.held, self.inputs.second):
            pairs = [(original(feeds), changed(feeds)) for feeds in family]
            found.append(
                study.relative_error([a for a, _ in pairs], [b for _, b in pairs])
                if pairs
                else None
            )
        return found[0] or 0.0, found[1]

    def targets(self, layers: Sequence[Layer]) -> list[Target]:
        """The layers with one call site that the walked model has as one conv, in its order."""
        outputs = {node.name: node.output for node in self.view.graph().nodes}
        nodes = self.flat.graph().nodes
        by_output = {node.output: node for node in nodes if node.op == "conv"}
        by_name = {node.name: node for node in nodes if node.op == "conv"}
        order = {node.name: index for index, node in enumerate(nodes)}
        found: list[Target] = []
        for layer in layers:
            site = layer.sites[0]
            node = by_output.get(outputs[site]) or by_name.get(site)
            if len(layer.sites) == 1 and node is not None and self._same(node, site):
                target = Target(layer.name, node.name, self.flat.conv(node.name))
                if target.narrow:
                    found.append(target)
        return sorted(found, key=lambda target: order[target.node])

    def _same(self, node: Node, site: str) -> bool:
        return self.flat.conv(node.name).weight.shape == self.view.conv(site).weight.shape


def prepare(
    model: Model,
    view: Model | MergedModel,
    options: CalibrationOptions,
    kernel_scale: str,
    progress: Progress,
) -> tuple[Calibrated | None, str]:
    """The model with its calibration inputs, or None, and in words what was done.

    Raises:
        UnsupportedError: the model does not allow what was asked for; never with ``auto``.
    """
    automatic = options.how == "auto"
    reason = reason_not_runnable(model)
    if reason is None and not isinstance(model, Walkable):
        reason = "a model of this format cannot be run layer by layer"
    if reason is not None:
        if automatic:
            return None, f"no calibration: {reason}"
        raise UnsupportedError(f"cannot calibrate: {reason}", where=str(model.path))
    try:
        inputs = _inputs(model, options, progress)
    except UnsupportedError as error:
        if automatic:
            return None, f"no calibration: {error.what}"
        raise
    flat = view.rewrite([]) if isinstance(view, MergedModel) else view
    calibrated = Calibrated(
        view, flat, inputs, kernel_scale, options.seed, options.device, progress
    )
    return calibrated, inputs.told


def _inputs(model: Model, calibration: CalibrationOptions, progress: Progress) -> Inputs:
    how, options = calibration.how, calibration.input
    seed, device = calibration.seed, calibration.device
    if how not in WAYS:
        return _given(model, Path(how), options, seed, device, progress)
    many, refused = 0, ""
    if how != "synthetic":
        many, refused = _distillable(model, options.images)
    if how == "distilled" and not many:
        raise UnsupportedError(
            f"cannot distil images: {refused}",
            where=str(model.path),
            hint="--calibrate synthetic works without",
        )
    if how == "auto" and many and many < FEWEST and options.images is None:
        refused, many = "distilling images would take long; --calibrate distilled does it", 0
    progress("drawing images", 0, 1)
    most = max(many, FEWEST) if many else options.images or IMAGES["synthetic"]
    found, scale = synthetic(model, options, seed, most)
    progress("drawing images", 1, 1)
    if many:
        bounds = scale.offset, scale.gain + scale.offset
        made, refused = _distilled(model, found.slot, found.images, bounds, device, progress)
        if made is not None:
            return replaced(found, made, model, seed)
    if how == "distilled":
        raise UnsupportedError(f"cannot distil images: {refused}", where=str(model.path))
    notes = (*found.notes, f"not distilled: {refused}") if refused else found.notes
    return replace(found, notes=notes)


def _given(
    model: Model,
    path: Path,
    options: InputOptions,
    seed: int,
    device: str | None,
    progress: Progress,
) -> Inputs:
    """The user's inputs, with distilled ones beside them, or drawn ones where that cannot be."""
    many, _ = _distillable(model, None)
    many = many if many >= FEWEST else 0
    found, images = read_path(model, path, options, seed, many or IMAGES["synthetic"])
    if many:
        axes = (0, *range(2, images.ndim))
        bounds = found.images.min(axes), found.images.max(axes)
        made, _ = _distilled(model, found.slot, images, bounds, device, progress)
        if made is not None:
            return beside(found, made, "distilled", model, seed)
    return beside(found, images, "synthetic", model, seed)


def _distillable(model: Model, images: int | None) -> tuple[int, str]:
    """How many images are distilled, 0 where that cannot be, and why not."""
    if not isinstance(model, Distillable):
        return 0, "a model of this format gives no gradients"
    if not any("BatchNorm" in node.kind for node in model.graph().nodes):
        return 0, "there is no BatchNorm with stored statistics"
    if images is not None:
        return images, ""
    return max(1, min(IMAGES["distilled"], EFFORT // max(3 * STEPS * model_macs(model), 1))), ""


def _distilled(
    model: Model,
    slot: Slot,
    images: FloatArray,
    bounds: tuple[FloatArray, FloatArray],
    device: str | None,
    progress: Progress,
) -> tuple[FloatArray | None, str]:
    """The images distilled within ``bounds`` per channel; or None, and why not."""
    if not isinstance(model, Distillable):
        return None, "a model of this format gives no gradients"
    if slot.last:
        return None, "its channels come last"
    low, high = bounds
    try:
        made = model.distil(
            slot.spec.name, images, low=low, high=high, device=device, progress=progress
        )
    except UnsupportedError as error:
        return None, error.what
    if made is None:
        return None, "there is no BatchNorm that can be differentiated through"
    return made, ""


def _walkable(model: Model) -> Walkable:
    if not isinstance(model, Walkable):
        raise UnsupportedError("a model of this format cannot be run layer by layer")
    return model
