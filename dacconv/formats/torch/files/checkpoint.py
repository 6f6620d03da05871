"""Reading and writing the files that hold torch tensors, without running code from them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dacconv.errors import FormatError, UsageError
from dacconv.formats.torch.files.pickles import is_module, told, wanted_globals
from dacconv.support.archives import Archive
from dacconv.support.user_code import search, user_code

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the dtypes that converted layers can have."""

MOST_HEADER = 100_000_000
"""Bytes of a safetensors header; the format itself allows no more."""
MOST_EXPANDED = 64 << 20
"""Bytes that a tensor may have beyond four times its storage, when its strides repeat elements."""

_COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The content of a file: ``content`` as it was pickled, or safetensors' tensors by name.

    ``legacy`` is the format of ``torch.save`` before version 1.6. ``dtypes`` and
    ``metadata`` are those of a safetensors header, None for other files.
    """

    path: Path
    content: Any
    legacy: bool = False
    dtypes: Mapping[str, str] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path, *, trust_pickle: bool) -> Checkpoint:
    """Open a file of ``torch.save`` or safetensors; tensors stay on disk where that works.

    Raises:
        FormatError: damaged, or a pickle that wants more than tensors without ``trust_pickle``.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[8:9] == b"{" and start[:2] != b"PK":
        return _read_safetensors(path)
    zipped = start[:2] == b"PK"
    mapped = zipped and _all_stored(path)
    content = _load(path, mapped, trust_pickle=trust_pickle)
    _check_sizes(path, content)
    return Checkpoint(path, content, legacy=not zipped)


def _all_stored(path: Path) -> bool:
    """Hold every record against its CRC, which torch does not do for mapped tensors.

    Returns:
        Whether all records lie in the file as they are, not packed, so that it can be mapped.
    """
    try:
        with Archive(path) as archive:
            archive.check()
            return all(entry.stored for entry in archive.records.values())
    except Exception as error:
        raise damaged(path, error) from error


def _check_sizes(path: Path, content: Any) -> None:
    """FormatError for a tensor that has far more elements than its storage."""
    for tensor in _tensors(content, 8):
        if tensor.layout != torch.strided or tensor.is_meta:
            continue  # refused where layers are looked for
        size = tensor.numel() * tensor.element_size()
        if size > MOST_EXPANDED + 4 * tensor.untyped_storage().nbytes():
            raise FormatError(
                f"damaged: a tensor of {size:,} bytes is far larger than what is stored of it",
                where=str(path),
                hint=_COPY_AGAIN,
            )


def _tensors(value: Any, depth: int) -> Iterator[torch.Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth - 1)


def _load(path: Path, mapped: bool, *, trust_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damage shows as almost any exception
        names = wanted_globals(path)
        if not names:
            raise damaged(path, error) from error
        if not trust_pickle:
            return _load_plain(path, mapped, names)
    search(Path.cwd())
    hint = f"the pickle needs {told(names)}; run where these can be imported (PYTHONPATH)"
    try:
        with user_code("unpickling it", str(path), hint):
            return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)
    except UsageError as error:
        if isinstance(error.__cause__, (pickle.UnpicklingError, EOFError, UnicodeDecodeError)):
            raise damaged(path, error.__cause__) from error
        raise


def _load_plain(path: Path, mapped: bool, names: tuple[str, ...]) -> Any:
    """The content of a pickle that needs ``names``, if these are modules of torch.nn alone."""
    from dacconv.formats.torch.files.plain_modules import NotPlainError, is_plain, read_plain

    if not is_plain(names):
        raise _refused(path, names)
    try:
        return read_plain(path, mapped=mapped)
    except NotPlainError as error:
        raise _refused(path, names, f"; {error}") from error
    except Exception as error:
        raise damaged(path, error) from error


def _refused(path: Path, names: tuple[str, ...], reason: str = "") -> FormatError:
    what = "a pickled nn.Module" if is_module(names) else "a pickle of more than tensors"
    return FormatError(
        f"this is {what}: opening it would run code of {told(names)}{reason}",
        where=str(path),
        hint="--trust-pickle opens it, if you trust whoever made the file; or save the\n"
        "  state_dict alone where it was made: torch.save(net.state_dict(), path)",
    )


def damaged(path: Path, error: BaseException) -> FormatError:
    """The user's message for whatever reading a broken file raised."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if "weights_only" in text:  # torch's advice to open it without care
        text = "its pickle is not one of tensors"
    what = f"cannot be read, it is damaged: {text[:500]}"
    return FormatError(what, where=str(path), hint=_COPY_AGAIN)


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MOST_HEADER)))
        metadata = header.pop("__metadata__", None) or {}
        names = sorted(header, key=lambda name: header[name]["data_offsets"])
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
        dtypes = {name: str(header[name]["dtype"]) for name in names}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            OSError, MemoryError, RecursionError) as error:  # fmt: skip
        raise damaged(path, error) from error
    return Checkpoint(path, tensors, dtypes=dtypes, metadata=dict(metadata))


def write_pickle(content: Any, path: Path) -> None:
    """``torch.save`` whose bytes do not depend on the file's name."""
    with path.open("wb") as stream:  # given a path, torch.save would write the name into it
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # closing the archive hides what went wrong before
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def write_safetensors(
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, str],
    metadata: Mapping[str, str],
    path: Path,
) -> None:
    """Write the tensors in their order, wider dtypes first as the format's own writer does.

    The header is JSON in that order, so the same input gives the same bytes.
    """
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        size = tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": dtypes[name],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in names:
            flat = tensors[name].detach().contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)
