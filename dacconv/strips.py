"""The first layers of a model in strips, and how that is told."""

from __future__ import annotations

from dacconv.errors import UnsupportedError, UsageError
from dacconv.models.base import Model, Stretch, Tileable


def stretch_of(model: Model) -> Stretch | None:
    """What of a model can be run in strips, if anything."""
    return model.stretch() if isinstance(model, Tileable) else None


def checked(model: Model, count: int) -> int:
    """How many strips a plan is to have where ``count`` were asked for; 0: the model is whole.

    Raises:
        UsageError: no such number.
        UnsupportedError: no model of that format can be run in strips.
    """
    if count < 1:
        raise UsageError(f"{count} is not a number above 0", where="--strips")
    if count > 1 and not isinstance(model, Tileable):
        raise _cannot(model)
    return count if count > 1 else 0


def in_strips(model: Model, count: int) -> tuple[Model, str]:
    """The model with its first layers in ``count`` strips, and what that is in words.

    Raises:
        UnsupportedError: nothing of it can be run in strips.
        UsageError: more strips than there are rows.
    """
    stretch = stretch_of(model)
    if stretch is None or not isinstance(model, Tileable):
        raise _cannot(model)
    if count > stretch.rows:
        raise UsageError(
            f"{count} strips of '{stretch.end}', which has {stretch.rows} rows", where="--strips"
        )
    rows = -(-stretch.rows // count)
    told = (
        f"'{stretch.begin}' to '{stretch.end}' in {count} strips of {rows} rows, whose borders "
        f"repeat {stretch.repeated * (count - 1) / 1e6:.3g} M MACs"
    )
    return model.in_strips(count), told


def _cannot(model: Model) -> UnsupportedError:
    return UnsupportedError(
        "cannot be run in strips",
        where=str(model.path),
        hint="strips need an ONNX graph with one image of a fixed size as its input, and from "
        "there convs, poolings and the like up to where the values have shrunk to half",
    )
