"""The user's own images, with or without labels, to measure a model on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dacconv.calibration.inputs.image_input import ImageInput, find_image_input
from dacconv.calibration.inputs.pixels import InputOptions, pixel_scale
from dacconv.calibration.inputs.reading import image_files, read_image
from dacconv.errors import UsageError
from dacconv.formats.base import Feeds, Model
from dacconv.graph.types import Array
from dacconv.support.arrays import ArrayFile, Header

IMAGES = ("x", "images", "image", "data", "inputs", "input", "x_test", "arr_0")
LABELS = ("y", "labels", "label", "targets", "target", "y_test", "arr_1")
"""The names of arrays that are accepted, the first found wins; case does not matter."""
CHECKED = 256
"""Images whose values are checked at a time."""
MAX_FILES = 5000
"""The most images of a folder that are read; of more, every n-th is."""


@dataclass(frozen=True, slots=True, eq=False)
class UserData:
    """Images and, where they are known, their classes; ``name`` says where they are from.

    Images are ``(count, channels, *size)``, ``(count, *size, channels)``, or ``(count, *size)``
    where there is one channel. Floats are fed as they are; bytes become 0..1 and are scaled as
    ``InputOptions`` say, or as the model's own first layers imply. ``labels`` is ``(count,)``.
    """

    images: Array
    labels: Array | None
    name: str


def read_data(path: Path, *, labelled: bool = True) -> UserData:
    """Read the arrays of a ``.npz``, or the one of a ``.npy``: images and their labels.

    Without ``labelled`` the labels may be missing.

    Raises:
        UsageError: not there, not readable, or without such arrays.
    """
    where = str(path)
    try:
        file = ArrayFile(path)
        if not file.zipped:
            if labelled:
                raise UsageError("is one array; images and labels are needed", where=where)
            return with_labels(file.read(""), None, path.name)
        images = file.read(_array_name(file.headers, IMAGES, where))
        has_labels = any(name.lower() in LABELS for name in file.headers)
        if not labelled and not has_labels:
            return with_labels(images, None, path.name)
        labels = file.read(_array_name(file.headers, LABELS, where))
    except FileNotFoundError as error:
        raise UsageError("no such file", where=where) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"not readable as .npz: {error}", where=where) from error
    return with_labels(images, labels, path.name)


def read_images(path: Path, model: Model, options: InputOptions) -> UserData:
    """Read a ``.npz``, a ``.npy``, or a folder of images, cropped to the size of the model.

    The images of a folder are labelled where they lie in one folder for each class: a class is
    the number that its folder is called, or the place of its folder in the order of the names.

    Raises:
        UsageError: not there, not readable, or not of the model's size.
    """
    if not path.is_dir():
        return read_data(path, labelled=False)
    image_input = find_image_input(model, options.layout)
    files = image_files(path, image_input)
    taken = files[:: -(-len(files) // MAX_FILES)]
    name = path.name if taken == files else f"{path.name} ({len(taken)} of {len(files)})"
    images = np.stack([read_image(file, image_input) for file in taken])
    return UserData(images, _classes_by_folder(path, files, taken), name)


def _classes_by_folder(path: Path, files: Sequence[Path], taken: Sequence[Path]) -> Array | None:
    """The class of each image that was taken; None where folders do not name the classes."""
    names = sorted({file.relative_to(path).parts[0] for file in files})
    if len(names) < 2 or any(len(file.relative_to(path).parts) != 2 for file in files):
        return None
    numbers = all(name.isdecimal() for name in names)
    classes = {name: int(name) if numbers else place for place, name in enumerate(names)}
    return np.array([classes[file.relative_to(path).parts[0]] for file in taken])


def with_labels(images: Array, labels: Array | None, name: str) -> UserData:
    """Images and labels that fit together; UsageError where they do not."""
    if images.dtype.kind not in "fu":
        raise UsageError(f"images of {images.dtype} are neither floats nor bytes", where=name)
    count = len(images) if images.ndim else 0
    some = range(0, count, CHECKED)
    if images.dtype.kind == "f" and not all(
        np.isfinite(images[i : i + CHECKED]).all() for i in some
    ):
        raise UsageError("holds NaN or infinite values", where=name, hint="leave such images out")
    if labels is None:
        if not count:
            raise UsageError("holds no images", where=name)
        return UserData(images, None, name)
    if labels.ndim == 0 or labels.size != len(labels) or labels.dtype.kind not in "iu":
        raise UsageError("the labels are not one whole number per image", where=name)
    if count != len(labels) or not count:
        raise UsageError(f"{count} images and {len(labels)} labels", where=name)
    return UserData(images, labels.reshape(-1), name)


def feeds_maker(
    model: Model, data: UserData, options: InputOptions
) -> tuple[Callable[[int, int], Feeds], str]:
    """What makes the model's inputs of some images, and how these are scaled.

    The function takes the number of the first image and how many there are to be.

    Raises:
        UsageError: the images are not of the model's size, or it takes more than images.
    """
    image_input = find_image_input(model, options.layout)
    if len(model.inputs()) > 1:
        raise UsageError(
            "--data is for models with one input", hint="--eval FILE.py:FUNCTION runs any model"
        )
    images = _as_channels_first(data, image_input)
    if images.dtype.kind == "f" and not options.has_scale:
        return lambda first, count: {
            image_input.spec.name: image_input.as_array(images[first : first + count])
        }, "floats, fed as they are"
    top = np.float32(1 if images.dtype.kind == "f" else np.iinfo(images.dtype).max)
    if options.order == "bgr":
        images = images[:, ::-1]
    sample = images[:64].astype(np.float32) / top
    scale = pixel_scale(model, image_input, options, sample)

    def feeds(first: int, count: int) -> Feeds:
        part = images[first : first + count].astype(np.float32) / top
        return {image_input.spec.name: image_input.as_array(scale.apply(part))}

    return feeds, scale.description


def _array_name(arrays: Mapping[str, Header], names: tuple[str, ...], where: str) -> str:
    """The name of the array that has the first of ``names``; UsageError where there is none."""
    by_name = {key.lower(): key for key in arrays}
    for name in names:
        if name in by_name:
            return by_name[name]
    have = ", ".join(f"{n} {'x'.join(map(str, a.shape))}" for n, a in arrays.items()) or "nothing"
    content = "images" if names is IMAGES else "labels"
    raise UsageError(
        f"holds no {content}: it has {have}",
        where=where,
        hint=f"--data takes images as {', '.join(IMAGES)} and labels as {', '.join(LABELS)}",
    )


def _as_channels_first(data: UserData, image_input: ImageInput) -> Array:
    images, shape = data.images, data.images.shape[1:]
    if shape == (image_input.channels, *image_input.size):
        return images
    if shape == (*image_input.size, image_input.channels):
        return np.moveaxis(images, -1, 1)
    if shape == image_input.size and image_input.channels == 1:
        return images[:, None]
    expected = "x".join(map(str, (image_input.channels, *image_input.size)))
    raise UsageError(
        f"holds images of {'x'.join(map(str, shape))}; the model takes {expected}", where=data.name
    )
