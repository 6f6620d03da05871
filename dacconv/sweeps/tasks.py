"""The user's own measure of a model: a function that is called with the model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np

from dacconv.errors import DacconvError, UsageError
from dacconv.formats.base import Model, Runner
from dacconv.graph.types import Array, ValueSpec
from dacconv.support.user_code import import_source, own_traceback, user_code

_HOW = "--eval is FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION; it is called with the model"


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """A model that can be called: the argument of the user's function.

    ``net(images)`` takes one array per input, in order or by name, and returns the output, or a
    dict of outputs by name if there are several. Shapes are those of the model:
    ``(batch, channels, *size)`` for most. ``inputs`` has the names, shapes and types.
    """

    inputs: tuple[ValueSpec, ...]
    runner: Runner

    def __call__(self, *arrays: Any, **named: Any) -> Array | dict[str, Array]:
        """Run the model once.

        Raises:
            TypeError: the arguments are not the inputs of the model.
        """
        names = [spec.name for spec in self.inputs]
        if len(arrays) > len(names):
            raise TypeError(f"the model takes {len(names)} inputs ({', '.join(names)})")
        arguments = {**dict(zip(names, arrays, strict=False)), **named}
        if set(arguments) != set(names):
            raise TypeError(f"the model takes {', '.join(names)}, not {', '.join(arguments)}")
        feeds = {
            spec.name: np.ascontiguousarray(arguments[spec.name], dtype=spec.dtype)
            for spec in self.inputs
        }
        outputs = self.runner(feeds)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


Task = Callable[[Net], Any]
"""The user's function: it returns a number, or a dict of numbers by name, for a model."""


def load_task(text: str) -> Task:
    """The function that ``FILE.py:FUNCTION`` names.

    Raises:
        UsageError: it cannot be imported, or is not a function.
    """
    source, _, name = text.rpartition(":")
    where = f"--eval {text}"
    if not source or not name:
        raise UsageError("no function named", where=where, hint=_HOW)
    with user_code(f"importing {source}", where, _HOW):
        module = import_source(source, where, _HOW)
    task: Task | None = getattr(module, name, None)
    if not callable(task):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
        hint = f"it has {', '.join(near)}" if near else _HOW
        problem = f"'{name}' is not a function" if hasattr(module, name) else f"has no '{name}'"
        raise UsageError(problem, where=where, hint=hint)
    return task


def run_task(task: Task, model: Model, label: str, threads: int | None) -> dict[str, float | None]:
    """The numbers that the user's function returns for a model, by name.

    A single number is called ``task``; NaN and infinity become None (not known).

    Raises:
        UsageError: the function raises (with the user's part of the traceback), or returns
            something else.
    """
    name = getattr(task, "__name__", "the function")
    net = Net(model.inputs(), model.runner(threads=threads))
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            result = task(net)
    except DacconvError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"your {name} raised {type(error).__name__} for point {label}",
            where="--eval",
            hint=own_traceback(error).replace("\n", "\n  "),
        ) from error
    numbers = result if isinstance(result, Mapping) else {"task": result}
    return {str(key): _number(value, str(key), name) for key, value in numbers.items()}


def _number(value: Any, key: str, name: str) -> float | None:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if hasattr(value, "item") and not isinstance(value, Real):
        value = value.item()  # a scalar tensor
    if not isinstance(value, Real):
        raise UsageError(
            f"your {name} returned {type(value).__name__} for '{key}', not a number",
            where="--eval",
            hint="return a number, or a dict of numbers by name",
        )
    number = float(value)
    return number if math.isfinite(number) else None
