"""Small files: a model to a packed file, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dacconv import __version__
from dacconv.errors import FormatError, UsageError
from dacconv.formats import model_files
from dacconv.formats.sniff import kind
from dacconv.formats.spans import ModelFile
from dacconv.jobs.write import Target
from dacconv.packing.container import MAGIC, Packed, to_bytes
from dacconv.packing.packing import pack, read_packed, unpack
from dacconv.settings import PackOptions, Settings
from dacconv.support.files import as_write_error, publish, replacing, staging
from dacconv.support.outputs import Output, check_outputs
from dacconv.support.progress import Progress, silent

__all__ = ["PackResult", "Target", "pack_file", "unpack_file"]


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was packed: the bytes of the model's files and of the packed file."""

    written: Path
    before: int
    after: int

    def lines(self) -> list[str]:
        """The result in words."""
        ratio = self.before / self.after
        return [
            f"wrote {self.written}: {self.after:,} of {self.before:,} bytes, {ratio:.2f} x smaller"
        ]


def pack_file(
    path: Path,
    options: PackOptions,
    settings: Settings,
    target: Target,
    progress: Progress = silent,
) -> PackResult:
    """Pack the model at ``path``; the packed file is unpacked and compared before it is kept.

    Raises:
        DacconvError: the model or an option is not right, or the target cannot be written.
    """
    file_kind = kind(path)
    files = model_files(path)
    check_outputs([Output(target.path, "-o")], [file.path for file in files], force=target.force)
    progress("packing", 0, 1)
    contents = [_content(file) for file in files]
    packed = pack(file_kind, files, contents, about=_about("lossless"))
    size = _write(packed, contents, target)
    progress("packing", 1, 1)
    return PackResult(target.path, packed.unpacked, size)


def unpack_file(path: Path, output: Path | None, *, force: bool = False) -> tuple[Path, ...]:
    """Write the files of the packed model at ``path``; return their paths, the model's first.

    The model is written to ``output``, by default under its own name beside ``path``. Other
    files, such as external data, keep their names relative to the model's folder.

    Raises:
        FormatError: ``path`` is no packed model, or is damaged.
        UsageError: a file exists already and not ``force``.
    """
    data = read_packed(path)
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(
            "not a packed model", where=str(path), hint="dacconv pack writes such files (.dcz)"
        )
    packed, contents = unpack(data, str(path))
    folder = path.parent if output is None else output.parent
    first = folder / packed.files[0].name if output is None else output
    targets = [first, *(folder / file.name for file in packed.files[1:])]
    places = [Output(target, "-o") for target in targets]
    folders = {target.parent for target in targets[1:]} - {folder}
    check_outputs(places[:1], [path], force=force)
    _make_folders(folders, folder)
    check_outputs(places, [path], force=force)
    with replacing(*targets[1:], first) as temporaries:
        for temporary, content in zip(temporaries, [*contents[1:], contents[0]], strict=True):
            temporary.write_bytes(content)
    return tuple(targets)


def _content(file: ModelFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise FormatError(
            f"cannot be read: {error.strerror or error}", where=str(file.path)
        ) from error


def _about(how: str) -> dict[str, str]:
    """What the header says of the way in which a model was packed."""
    return {"made_by": f"dacconv {__version__}", "how": how}


def _write(packed: Packed, contents: Sequence[bytes], target: Target) -> int:
    """Write a packed file that unpacks to ``contents``, and give it its name; return its size."""
    with staging(target.path) as folder:
        place = folder / target.path.name
        data = to_bytes(packed)
        try:
            place.write_bytes(data)
        except OSError as error:
            raise as_write_error(error, target.path) from error
        _, unpacked = unpack(read_packed(place), str(target.path))
        if any(bytes(a) != b for a, b in zip(unpacked, contents, strict=True)):
            raise FormatError("the packed file does not hold the model", where=str(target.path))
        check_outputs([Output(target.path, "-o")], [], force=target.force)
        publish([place], target.path.parent)
    return len(data)


def _make_folders(folders: set[Path], root: Path) -> None:
    """Make the folders of side files inside ``root``; a link that leads out of it is refused."""
    for folder in sorted(folders):
        if not folder.resolve().is_relative_to(root.resolve()):
            raise UsageError(
                "is a link that leads out of the folder of the model",
                where=str(folder),
                hint="name another folder: -o FOLDER/MODEL",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise as_write_error(error, folder) from error
