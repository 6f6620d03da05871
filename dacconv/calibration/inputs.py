"""The inputs that a model is calibrated on: drawn, or read from what the user has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dacconv.calibration.images import clouds, dead_leaves, noisy
from dacconv.calibration.scale import BYTES, Affinity, implied_scale, scale_of_biases
from dacconv.errors import DacconvError, UnsupportedError, UsageError
from dacconv.merged import merged
from dacconv.models.base import Feeds, Model
from dacconv.types import Array, FloatArray, ValueSpec
from dacconv.verification import make_inputs

IMAGES = {"synthetic": 64, "distilled": 256, "real": 500}
"""How many inputs by default."""
MEMORY = 2**30
"""Bytes that the live activations of all calibration inputs may take, about."""
BATCH, BATCH_BYTES = 16, 2**27
"""Samples of one run at most, and the bytes of their live activations, about."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


SAY = "--input-range, --input-mean and --input-std say otherwise"
NORMALISED = Affinity(
    np.full(3, 1 / 0.225),
    np.full(3, -2.0),
    f"nothing in the model says how its input is scaled: about -2..2.4 was assumed; {SAY}",
    guessed=True,
)
"""Colours freed of ImageNet's mean and divided by its deviation, as most classifiers want them."""


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What the user says about the model's input.

    A pixel in 0..1 becomes ``(low + (high - low) * pixel - mean) / std`` per channel.
    ``layout`` is ``nchw`` or ``nhwc``, ``order`` ``rgb`` or ``bgr``. None is: find out.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | None = None
    layout: str | None = None
    order: str = "rgb"
    images: int | None = None

    @property
    def given(self) -> bool:
        """Whether the user says how pixels are scaled."""
        return not (self.mean is None and self.std is None and self.range is None)


@dataclass(frozen=True, slots=True)
class Slot:
    """The input that takes the images: its spec, and where its channels and sizes are."""

    spec: ValueSpec
    channels: int
    size: tuple[int, ...]
    last: bool

    def placed(self, images: FloatArray) -> Array:
        """``(batch, channels, *size)`` in the layout and dtype of the input."""
        made = np.moveaxis(images, 1, -1) if self.last else images
        dtype = np.dtype(self.spec.dtype)
        if dtype.kind in "iu":
            made = np.clip(np.rint(made), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return np.ascontiguousarray(made.astype(dtype))

    def jittered(self, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        """The feeds with every image mirrored or not, and moved around by up to an eighth."""
        array = feeds[self.spec.name]
        axes = tuple(range(array.ndim - 2)) if self.last else tuple(range(1, array.ndim - 1))
        made = np.empty_like(array)
        for index, image in enumerate(array):
            turned = np.flip(image, axes[-1]) if rng.integers(2) else image
            moves = [int(rng.integers(-(n // 8), n // 8 + 1)) for n in self.size]
            made[index] = np.roll(turned, moves, axes)
        return {**feeds, self.spec.name: made}


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Calibration inputs: two halves to fit and to judge by, and a second family to judge by.

    ``images`` are the same as arrays ``(count, channels, *size)``, scaled. ``told`` says in
    words what they are; ``notes`` what was assumed about them. ``slot`` is the input that takes
    the images.
    """

    kind: str
    told: str
    fitted: tuple[Feeds, ...]
    held: tuple[Feeds, ...]
    second: tuple[Feeds, ...]
    images: FloatArray
    slot: Slot
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many samples there are to fit and to judge by, the second family not counted."""
        return samples((*self.fitted, *self.held))


def samples(batches: Sequence[Feeds]) -> int:
    """How many samples some batches hold."""
    return sum(len(next(iter(feeds.values()))) for feeds in batches)


def find_slot(model: Model, layout: str | None) -> Slot:
    """The image-like input of a model.

    Raises:
        UnsupportedError: it has none, or its size is not known.
    """
    specs = [s for s in model.inputs() if s.dtype.startswith("float") or s.dtype == "uint8"]
    found = [s for s in specs if s.shape is None or len(s.shape) in (3, 4, 5)]
    if not found:
        raise UnsupportedError("no input of the model looks like an image or a signal")
    spec = found[0]
    shape = spec.shape
    if shape is None or any(size is None for size in shape[1:]):
        raise UnsupportedError(
            f"the size of input '{spec.name}' is not known",
            hint=f"give it with --input-shape {spec.name}:1,3,224,224 (its real size)",
        )
    sizes = [int(size) for size in shape[1:] if size is not None]
    last = layout == "nhwc" or (
        layout is None and len(sizes) == 3 and sizes[0] > 4 >= sizes[-1] and sizes[0] != sizes[-1]
    )
    channels = sizes.pop() if last else sizes.pop(0)
    return Slot(spec, channels, tuple(sizes), last)


def affordable(model: Model, wanted: int) -> int:
    """How many samples fit into ``MEMORY``; at least 8."""
    return max(8, min(wanted, MEMORY // max(_live(model), 1)))


def _live(model: Model) -> int:
    """Bytes of a sample's live activations: two streams, a few values alive at a time."""
    sizes = sorted(
        math.prod(size or 1 for size in node.shape)
        for node in model.graph().nodes
        if node.shape is not None
    )
    return 4 * 2 * sum(sizes[-4:])


def synthetic(model: Model, options: InputOptions, seed: int, most: int) -> tuple[Inputs, Affinity]:
    """At most ``most`` dead leaves to fit to and to judge by, clouds as the second family.

    Raises:
        UnsupportedError: the model takes no image, or its size is not known.
    """
    slot = find_slot(model, options.layout)
    count = affordable(model, most)
    leaves = dead_leaves(count, slot.channels, slot.size, seed)
    second = clouds(max(8, count // 4), slot.channels, slot.size, seed + 1)
    scale = pixel_scale(model, slot, options, leaves)
    restores = _restores(model, slot, seed)
    if scale.guessed and slot.channels == 3 and len(slot.size) == 2 and not restores:
        scale = NORMALISED
    noted = [scale.told]
    if restores:
        leaves, second = noisy(leaves, seed + 2), noisy(second, seed + 3)
        noted.append("the output is an image like the input: noise was added, as to be removed")
    if len(slot.size) != 2:
        noted.append("the input is no image: signals with a 1/f spectrum and steps were assumed")
    others = [s.name for s in model.inputs() if s.name != slot.spec.name]
    if others:
        noted.append(f"seeded noise was fed to the other inputs ({', '.join(others)})")
    feed = feeder(model, slot, seed)
    scaled = scale.apply(leaves)
    fitted, held = halves(feed(scaled))
    judges = [scale.apply(second)]
    if scale.guessed and not restores:
        judges.append(np.asarray(BYTES * (second - second.mean()), np.float32))
        noted.append("what is wrong for pixels of -128..128 was not taken either")
    return (
        Inputs(
            "synthetic",
            f"{count} synthetic images (dead leaves), judged by a held-out half and by clouds",
            fitted,
            held,
            tuple(feed(np.concatenate(judges))),
            scaled,
            slot,
            tuple(noted),
        ),
        scale,
    )


def _restores(model: Model, slot: Slot, seed: int) -> bool:
    """Whether an output has the shape of the image: the model denoises, or restores otherwise."""
    batch = int((slot.spec.shape or (1,))[0] or 1)
    flat = np.zeros((batch, slot.channels, *slot.size), np.float32)
    try:
        found = model.runner()(_one(model, slot, flat, seed))
    except DacconvError:
        return False
    return any(array.shape == slot.placed(flat).shape for array in found.values())


def read_path(model: Model, path: Path, options: InputOptions, seed: int) -> Inputs:
    """The user's own inputs: a folder of images, or arrays in ``.npy`` or ``.npz``.

    Raises:
        UsageError: nothing there, not readable, or not of the model's shape.
    """
    slot = find_slot(model, options.layout)
    count = affordable(model, options.images or IMAGES["real"])
    if path.is_dir():
        images, raw = _folder(path, slot, options, count), False
    else:
        images, raw = _arrays(path, slot, count)
    notes: tuple[str, ...] = ()
    if not raw or options.given:
        scale = pixel_scale(model, slot, options, images)
        images, notes = scale.apply(images), (scale.told,)
    if len(images) < 4:
        raise UsageError(
            f"{len(images)} inputs are too few", where=str(path), hint="give at least 4, better 64"
        )
    feed = feeder(model, slot, seed)
    fitted, held = halves(feed(images))
    beside = min(len(images), IMAGES["synthetic"])
    leaves = dead_leaves(beside, slot.channels, slot.size, seed)
    second = clouds(max(8, beside // 4), slot.channels, slot.size, seed + 1)
    told = (
        f"{len(images)} inputs from {path.name}, half of them held out, and {beside} synthetic ones"
    )
    return Inputs(
        "real",
        told,
        (*fitted, *feed(like(leaves, images))),
        held,
        tuple(feed(like(second, images))),
        images,
        slot,
        notes,
    )


def like(drawn: FloatArray, images: FloatArray) -> FloatArray:
    """Drawn images with the mean and the deviation that each channel of ``images`` has."""
    axes = (0, *range(2, images.ndim))
    mean, wanted = (array.mean(axes, keepdims=True) for array in (drawn, images))
    gain = images.std(axes, keepdims=True) / np.maximum(drawn.std(axes, keepdims=True), 1e-6)
    return np.asarray((drawn - mean) * gain + wanted, np.float32)


def pixel_scale(model: Model, slot: Slot, options: InputOptions, images: FloatArray) -> Affinity:
    """How pixels in 0..1 become what the model expects: as the user says, or as it implies."""
    if options.given:
        low, high = options.range or (0.0, 1.0)
        mean = per_channel(options.mean or (0.0,), slot, "--input-mean")
        std = per_channel(options.std or (1.0,), slot, "--input-std")
        if not all(std):
            raise UsageError("0 is no scale", where="--input-std")
        return Affinity((high - low) / std, (low - mean) / std, "the input is scaled as you said")
    if slot.spec.dtype == "uint8":
        return _plain(slot, 255.0, "the input is of bytes: 0..255 was assumed")
    found = implied_scale(model, slot.spec.name, images, last=slot.last)
    found = found or scale_of_biases(merged(model), images)
    return found or _plain(
        slot,
        1.0,
        f"nothing in the model says how its input is scaled: 0..1 was assumed; {SAY}",
        guessed=True,
    )


def per_channel(values: Sequence[float], slot: Slot, option: str) -> FloatArray:
    """One value per channel of the input."""
    if len(values) not in (1, slot.channels):
        raise UsageError(
            f"{len(values)} values for {slot.channels} channels",
            where=option,
            hint="give one, or one per channel, separated by commas",
        )
    return np.broadcast_to(np.asarray(values, np.float64), (slot.channels,))


def feeder(model: Model, slot: Slot, seed: int) -> Callable[[FloatArray], list[Feeds]]:
    """A function that cuts images into the batches that the model takes."""
    step, free = _batch(model, slot, seed)

    def feed(images: FloatArray) -> list[Feeds]:
        whole = len(images) if free else len(images) // step * step
        return [_one(model, slot, images[i : i + step], seed + i) for i in range(0, whole, step)]

    return feed


def halves(batches: Sequence[Feeds]) -> tuple[tuple[Feeds, ...], tuple[Feeds, ...]]:
    """Every other batch; of one batch, every other sample."""
    if len(batches) > 1:
        return tuple(batches[::2]), tuple(batches[1::2])
    (only,) = batches
    return ({k: v[::2] for k, v in only.items()},), ({k: v[1::2] for k, v in only.items()},)


def _one(model: Model, slot: Slot, images: FloatArray, seed: int) -> Feeds:
    made: dict[str, Array] = {}
    rng = np.random.default_rng(seed)
    for spec in model.inputs():
        if spec.name == slot.spec.name:
            made[spec.name] = slot.placed(images)
        else:
            made |= make_inputs([spec], rng)
    return made


def _batch(model: Model, slot: Slot, seed: int) -> tuple[int, bool]:
    """The samples that one run takes, and whether it may be fewer: the model's batch is free."""
    fixed = int((slot.spec.shape or (1,))[0] or 1)
    if fixed > 1 or len(model.inputs()) > 1:
        return fixed, False
    trial = np.zeros((2, slot.channels, *slot.size), np.float32)
    try:
        found = model.runner()(_one(model, slot, trial, seed))
    except DacconvError:
        return 1, False
    free = all(array.ndim > 0 and array.shape[0] == 2 for array in found.values())
    return max(1, min(BATCH, BATCH_BYTES // max(_live(model), 1))) if free else 1, free


def _plain(slot: Slot, high: float, told: str, *, guessed: bool = False) -> Affinity:
    return Affinity(np.full(slot.channels, high), np.zeros(slot.channels), told, guessed)


def _arrays(path: Path, slot: Slot, count: int) -> tuple[FloatArray, bool]:
    """The images of a ``.npy`` or ``.npz``, and whether they are the model's input already."""
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            found = held
        else:
            names = [n for n in held.files if held[n].ndim == len(slot.size) + 2]
            found = held[names[0]] if names else np.zeros(0)
    except FileNotFoundError as error:
        raise UsageError("no such file or folder", where=str(path)) from error
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"not readable as .npy or .npz: {error}",
            where=str(path),
            hint="--calibrate takes none, synthetic, distilled, auto, a folder or an array",
        ) from error
    first, last = (slot.channels, *slot.size), (*slot.size, slot.channels)
    if found.dtype.kind not in "fiu" or found.shape[1:] not in (first, last):
        wanted = "x".join(map(str, first))
        raise UsageError(
            f"holds {'x'.join(map(str, found.shape))} {found.dtype}, not N x {wanted}",
            where=str(path),
        )
    if not np.isfinite(found).all():
        raise UsageError("holds NaN or infinite values", where=str(path))
    picked = found[np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]
    if found.shape[1:] == last and first != last:
        picked = np.moveaxis(picked, -1, 1)
    if found.dtype.kind == "f":
        return np.ascontiguousarray(picked, np.float32), True
    return np.ascontiguousarray(picked, np.float32) / np.float32(np.iinfo(found.dtype).max), False


def _folder(path: Path, slot: Slot, options: InputOptions, count: int) -> FloatArray:
    """The images of a folder, the middle of each at the model's size, in 0..1."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise UsageError(
            "reading images needs Pillow", where=str(path), hint="pip install pillow, or give .npz"
        ) from error
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError("holds no images", where=str(path), hint=", ".join(sorted(SUFFIXES)))
    if len(slot.size) != 2 or slot.channels not in (1, 3):
        raise UsageError(
            f"the model takes {slot.channels} x {slot.size}, not an image; give an .npz",
            where=str(path),
        )
    made = []
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        try:
            with Image.open(files[index]) as image:
                mode = image.convert("L" if slot.channels == 1 else "RGB")
                fitted = ImageOps.fit(mode, slot.size[::-1], Image.Resampling.BILINEAR)
        except (OSError, UnidentifiedImageError) as error:
            raise UsageError(f"not an image: {error}", where=str(files[index])) from error
        pixels = np.asarray(fitted, np.float32).reshape(*slot.size, slot.channels) / 255
        made.append(pixels[..., ::-1] if options.order == "bgr" else pixels)
    return np.ascontiguousarray(np.stack(made).transpose(0, 3, 1, 2))


def replaced(inputs: Inputs, images: FloatArray, model: Model, seed: int) -> Inputs:
    """The inputs with distilled images in the place of the drawn ones.

    What they were distilled from becomes the second family.
    """
    fitted, held = halves(feeder(model, inputs.slot, seed)(images))
    told = f"{len(images)} images distilled from BatchNorm statistics, judged by a held-out half"
    return replace(
        inputs,
        kind="distilled",
        told=f"{told} and by the images that they began as",
        fitted=fitted,
        held=held,
        second=inputs.held[: max(1, len(inputs.held) // 2)],
        images=images,
    )
