"""Calibration inputs read from the user's files: a folder of images, or arrays."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.families import IMAGES, Inputs, draw_images
from dacconv.calibration.inputs.image_input import (
    MIN_SAMPLES,
    ImageInput,
    affordable_count,
    batch_maker,
    find_image_input,
    split_halves,
)
from dacconv.calibration.inputs.pixels import InputOptions, pixel_scale
from dacconv.errors import UsageError
from dacconv.formats.base import Model
from dacconv.graph.types import Array, FloatArray
from dacconv.support.arrays import ArrayFile

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
MOST_PIXELS = 89_478_485
"""Pixels of an image; above it Pillow warns of an image that unpacks to too much."""


def read_inputs(
    model: Model, path: Path, options: InputOptions, seed: int, synthetic: int
) -> tuple[Inputs, FloatArray]:
    """The inputs in a folder of images, or in the arrays of a ``.npy`` or ``.npz`` file.

    Also returns at most ``synthetic`` synthetic images with the same colours, to fit to as well.

    Raises:
        UsageError: the path does not exist, is not readable, or does not fit the model's input.
    """
    image_input = find_image_input(model, options.layout)
    requested = options.images or IMAGES["real"]
    room = affordable_count(model, image_input, requested + synthetic)
    fewest = max(MIN_SAMPLES, image_input.min_samples)
    count = max(fewest, min(requested, room - min(synthetic, room // 2)))
    if path.is_dir():
        images, scaled = _read_folder(path, image_input, options, count), False
    else:
        images, scaled = _read_array(path, image_input, count)
    notes: tuple[str, ...] = ()
    if not scaled or options.has_scale:
        scale = pixel_scale(model, image_input, options, images)
        images, notes = scale.apply(images), (scale.description,)
    if len(images) < image_input.min_samples:
        raise UsageError(
            f"{len(images)} inputs are too few",
            where=str(path),
            hint=f"give at least {image_input.min_samples}, better 64",
        )
    feed = batch_maker(model, image_input, seed)
    fitted, held = split_halves(feed(images))
    synthetic_count = max(image_input.batch, min(synthetic, room - len(images)))
    leaves, clouds = draw_images(image_input, synthetic_count, seed)
    inputs = Inputs(
        kind="real",
        description=f"{len(images)} inputs from {path.name}, half of them held out",
        fitted=fitted,
        held=held,
        second=tuple(feed(match_colours(clouds, images))),
        images=images,
        image_input=image_input,
        notes=notes,
    )
    return inputs, match_colours(leaves, images)


def match_colours(synthetic: FloatArray, images: FloatArray) -> FloatArray:
    """Synthetic images with the mean and the standard deviation of each channel of ``images``."""
    axes = (0, *range(2, images.ndim))
    old_mean, new_mean = (array.mean(axes, keepdims=True) for array in (synthetic, images))
    gain = images.std(axes, keepdims=True) / np.maximum(synthetic.std(axes, keepdims=True), 1e-6)
    return np.asarray((synthetic - old_mean) * gain + new_mean, np.float32)


def _read_array(path: Path, image_input: ImageInput, count: int) -> tuple[FloatArray, bool]:
    """At most ``count`` images of a ``.npy`` or ``.npz``, and whether they need no scaling."""
    try:
        arrays = ArrayFile(path)
        axes = len(image_input.size) + 2
        names = [name for name, header in arrays.headers.items() if header.ndim == axes]
        array = arrays.read((names or [""])[0]) if names or not arrays.zipped else np.zeros(0)
    except FileNotFoundError as error:
        raise UsageError("no such file or folder", where=str(path)) from error
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"not readable as .npy or .npz: {error}",
            where=str(path),
            hint="--calibrate takes none, synthetic, distilled, auto, a folder or an array",
        ) from error
    channels, size = image_input.channels, image_input.size
    channels_first, channels_last = (channels, *size), (*size, channels)
    if array.dtype.kind not in "fiu" or array.shape[1:] not in (channels_first, channels_last):
        expected = "x".join(map(str, channels_first))
        raise UsageError(
            f"holds {'x'.join(map(str, array.shape))} {array.dtype}, not N x {expected}",
            where=str(path),
        )
    if not np.isfinite(array).all():
        raise UsageError("holds NaN or infinite values", where=str(path))
    images = array[np.linspace(0, len(array) - 1, min(count, len(array))).astype(int)]
    if array.shape[1:] == channels_last and channels_first != channels_last:
        images = np.moveaxis(images, -1, 1)
    if array.dtype.kind == "f":
        return np.ascontiguousarray(images, np.float32), True
    return np.ascontiguousarray(images, np.float32) / np.float32(np.iinfo(array.dtype).max), False


def _read_folder(
    path: Path, image_input: ImageInput, options: InputOptions, count: int
) -> FloatArray:
    """At most ``count`` images of a folder in 0..1, cropped to the middle at the model's size."""
    files = image_files(path, image_input)
    images = []
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        file = files[index]
        pixels = read_image(file, image_input).astype(np.float32) / 255
        images.append(pixels[..., ::-1] if options.order == "bgr" else pixels)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def image_files(path: Path, image_input: ImageInput) -> list[Path]:
    """The images in a folder and the folders inside it, in the order of their names.

    Raises:
        UsageError: there are none, or the model takes no images.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError("holds no images", where=str(path), hint=f"files of {suffixes} are read")
    if len(image_input.size) != 2 or image_input.channels not in (1, 3):
        raise UsageError(
            f"the model takes {image_input.channels} x {image_input.size}, not an image",
            where=str(path),
        )
    return files


def read_image(file: Path, image_input: ImageInput) -> Array:
    """An image as bytes ``(height, width, channels)``, its middle at the size of the input.

    Colours are in the order red, green, blue.

    Raises:
        UsageError: not a regular file, not an image, or one of too many pixels.
    """
    from PIL import Image, ImageOps

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
            colours = image.convert("L" if image_input.channels == 1 else "RGB")
            height, width = image_input.size
            cropped = ImageOps.fit(colours, (width, height), Image.Resampling.BILINEAR)
    except UsageError:
        raise
    except Exception as error:  # Pillow's plugins raise almost any
        raise UsageError(f"not an image: {error}", where=str(file)) from error
    return np.asarray(cropped, np.uint8).reshape(*image_input.size, image_input.channels)
