"""Calibration inputs that the user has: a folder of images, or arrays."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.families import IMAGES, Inputs, drawn
from dacconv.calibration.inputs.pixels import InputOptions, pixel_scale
from dacconv.calibration.inputs.slots import FEWEST, Slot, affordable, feeder, find_slot, halves
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.graph.types import FloatArray
from dacconv.support.arrays import ArrayFile

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MOST_PIXELS = 89_478_485
"""Pixels of an image; above it Pillow warns of an image that unpacks to too much."""


def read_path(
    model: Model, path: Path, options: InputOptions, seed: int, beside: int
) -> tuple[Inputs, FloatArray]:
    """The user's own inputs: a folder of images, or arrays in ``.npy`` or ``.npz``.

    And at most ``beside`` drawn images of the same colours, to fit to as well.

    Raises:
        UsageError: nothing there, not readable, or not of the model's shape.
    """
    slot = find_slot(model, options.layout)
    wanted = options.images or IMAGES["real"]
    room = affordable(model, slot, wanted + beside)
    count = max(FEWEST, slot.fewest, min(wanted, room - min(beside, room // 2)))
    if path.is_dir():
        images, raw = _folder(path, slot, options, count), False
    else:
        images, raw = _arrays(path, slot, count)
    notes: tuple[str, ...] = ()
    if not raw or options.given:
        scale = pixel_scale(model, slot, options, images)
        images, notes = scale.apply(images), (scale.told,)
    if len(images) < slot.fewest:
        raise UsageError(
            f"{len(images)} inputs are too few",
            where=str(path),
            hint=f"give at least {slot.fewest}, better 64",
        )
    feed = feeder(model, slot, seed)
    fitted, held = halves(feed(images))
    leaves, clouds = drawn(slot, max(slot.batch, min(beside, room - len(images))), seed)
    told = f"{len(images)} inputs from {path.name}, half of them held out"
    second = tuple(feed(like(clouds, images)))
    found = Inputs("real", told, fitted, held, second, images, slot, notes)
    return found, like(leaves, images)


def like(drawn: FloatArray, images: FloatArray) -> FloatArray:
    """Drawn images with the mean and the deviation that each channel of ``images`` has."""
    axes = (0, *range(2, images.ndim))
    mean, wanted = (array.mean(axes, keepdims=True) for array in (drawn, images))
    gain = images.std(axes, keepdims=True) / np.maximum(drawn.std(axes, keepdims=True), 1e-6)
    return np.asarray((drawn - mean) * gain + wanted, np.float32)


def _arrays(path: Path, slot: Slot, count: int) -> tuple[FloatArray, bool]:
    """The images of a ``.npy`` or ``.npz``, and whether they are the model's input already."""
    try:
        held = ArrayFile(path)
        names = [n for n, header in held.headers.items() if header.ndim == len(slot.size) + 2]
        found = held.read((names or [""])[0]) if names or not held.zipped else np.zeros(0)
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
        from PIL import Image, ImageOps
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
        file = files[index]
        if not stat.S_ISREG(file.stat().st_mode):
            raise UsageError("not a regular file", where=str(file))
        try:
            with warnings.catch_warnings(), Image.open(file) as image:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                if image.width * image.height > MOST_PIXELS:
                    raise UsageError(
                        f"{image.width} x {image.height} is more than {MOST_PIXELS:,} pixels",
                        where=str(file),
                    )
                mode = image.convert("L" if slot.channels == 1 else "RGB")
                fitted = ImageOps.fit(mode, slot.size[::-1], Image.Resampling.BILINEAR)
        except UsageError:
            raise
        except Exception as error:  # Pillow's plugins raise almost any
            raise UsageError(f"not an image: {error}", where=str(file)) from error
        pixels = np.asarray(fitted, np.float32).reshape(*slot.size, slot.channels) / 255
        made.append(pixels[..., ::-1] if options.order == "bgr" else pixels)
    return np.ascontiguousarray(np.stack(made).transpose(0, 3, 1, 2))
