"""What a pickle would run, found by reading its opcodes; nothing is ever executed."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dacconv.support.archives import Archive, ArchiveError

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING",
            "SHORT_BINSTRING"}  # fmt: skip
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_MARGIN = 1 << 16

TENSORS = (
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.serialization._get_layout",
)
"""Globals that plain tensors need; so do ``torch._utils._rebuild_*``, storages and dtypes."""


def wanted_globals(path: Path) -> tuple[str, ...]:
    """The classes and functions that unpickling would look up and may call, without tensors'.

    Reads zip archives of ``torch.save`` and the older format. A damaged pickle gives what
    was found before the damage.
    """
    try:
        with path.open("rb") as stream:
            return _wanted(stream)
    except OSError:
        return ()


def wanted_in(data: bytes) -> tuple[str, ...]:
    """As :func:`wanted_globals`, for a file in memory."""
    return _wanted(io.BytesIO(data))


def _wanted(stream: IO[bytes]) -> tuple[str, ...]:
    names = (name for pickled in _pickles(stream) for name in _globals(pickled))
    return tuple(dict.fromkeys(name for name in names if not _plain(name)))


def is_module(names: tuple[str, ...]) -> bool:
    """Whether the globals are those of a pickled ``nn.Module``."""
    return any(n.startswith("torch.nn.modules.") or n == "torch.nn.Module" for n in names)


def told(names: tuple[str, ...], most: int = 6) -> str:
    """The names for a message, the user's own before those of torch."""
    ordered = sorted(names, key=lambda name: name.startswith("torch."))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(ordered[:most]) + more


def _plain(name: str) -> bool:
    if name in TENSORS or name.startswith("torch._utils._rebuild_"):
        return True
    home, _, last = name.rpartition(".")
    if home in ("torch", "torch.storage", "torch.cuda") and last.endswith("Storage"):
        return True
    return home == "torch" and last.islower() and last.rstrip("0123456789_") in (
        "float", "int", "uint", "bfloat", "bool", "complex", "half", "double", "long", "short",
        "float8_e4m3fn", "float8_e5m2", "quint", "qint",
    )  # fmt: skip


def _pickles(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The pickle streams of a checkpoint, which torch tells from a zip archive by its start."""
    start = stream.read(2)
    stream.seek(0)
    if start != b"PK":
        yield stream
        return
    try:
        with Archive(stream) as archive:
            for name in archive.records:
                if name.endswith(".pkl"):
                    yield io.BytesIO(archive.read(name))
    except (OSError, ArchiveError):
        return


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """The globals of the pickles that follow each other in a stream."""
    while True:
        memo: dict[object, str] = {}
        strings: list[str] = []
        memoized = 0
        ended = False
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                ended = opcode.name == "STOP"
                if opcode.name in _STRINGS and isinstance(argument, str):
                    strings.append(argument)
                elif opcode.name in _GETS and argument in memo:
                    strings.append(memo[argument])
                elif opcode.name == "MEMOIZE":
                    if strings:
                        memo[memoized] = strings[-1]
                    memoized += 1
                elif opcode.name in _PUTS and strings:
                    memo[argument] = strings[-1]
                elif opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".", 1)
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    yield f"{strings[-2]}.{strings[-1]}"
        except Exception:  # damaged, or the tensor data after the last pickle
            return
        if not ended:
            return
