"""Small files: a model to a packed file and back, and a model with rounded weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dacconv.conversion import pipeline
from dacconv.conversion.gates import missed
from dacconv.conversion.verification import verify
from dacconv.errors import DacconvError, FormatError, UsageError
from dacconv.formats import model_files
from dacconv.formats.base import Model
from dacconv.formats.inputs import reason_not_runnable
from dacconv.formats.sniff import kind
from dacconv.formats.spans import ModelFile
from dacconv.jobs.convert import input_files
from dacconv.jobs.rounding import DEFAULT_BITS, Original, Search, measured_weights
from dacconv.jobs.write import Target, check_verification, open_with
from dacconv.packing.choice import (
    RoundedModel,
    round_model,
    steps_by_bits,
    with_few_values,
)
from dacconv.packing.container import MAGIC, Packed, to_bytes
from dacconv.packing.packing import read_packed, unpack
from dacconv.packing.result import PackResult
from dacconv.packing.weights import find_weights
from dacconv.settings import PackOptions, RoundOptions, Settings
from dacconv.support.files import as_write_error, publish, replacing, staging
from dacconv.support.outputs import Output, check_outputs
from dacconv.support.progress import Progress, silent


def pack_file(
    path: Path,
    options: PackOptions,
    settings: Settings,
    target: Target,
    progress: Progress = silent,
) -> PackResult:
    """Pack the model at ``path``; what is kept is verified as it comes out of the packed file.

    Raises:
        DacconvError: the model or an option is not right, or the target cannot be written.
    """
    check_pack_options(options, settings)
    original = _read(path, target, settings)
    if options.lossless:
        progress("packing", 0, 1)
        packed = original.packed()
        size = _write_packed(packed, original.contents, target)
        progress("packing", 1, 1)
        return PackResult((target.path,), packed.unpacked, size)
    model = open_with(path, settings)
    check_verification(model, settings)
    weights, notes = measured_weights(model, original, settings, progress)
    search = Search(model, original, weights, settings, target.path, progress)
    if options.size is not None:
        rounded = search.by_size(options.share)
    elif settings.max_error is not None and options.bits is None:
        rounded = search.by_error(settings.max_error)
    else:
        steps = steps_by_bits(weights, options.bits or DEFAULT_BITS)
        rounded = round_model(original.files, original.contents, weights, steps)
    packed = original.packed(rounded)
    result = _judged(model, original, rounded, settings, target, progress)
    size = len(to_bytes(packed))
    if not result.missed or target.keep:
        size = _write_packed(packed, rounded.contents, target)
        result = replace(result, written=(target.path,))
    before = sum(map(len, original.contents))
    return replace(result, before=before, after=size, notes=(*notes, *result.notes))


def round_file(
    path: Path,
    options: RoundOptions,
    settings: Settings,
    target: Target,
    progress: Progress = silent,
) -> PackResult:
    """Write the model with few different values in each weight, as an ordinary file.

    Raises:
        DacconvError: the model or an option is not right, or the target cannot be written.
    """
    count = options.float_levels
    if not 2 <= count <= 65536:
        raise UsageError(f"{count} is not between 2 and 65536", where="--float-levels")
    original = _read(path, target, settings)
    model = open_with(path, settings)
    check_verification(model, settings)
    weights, notes = find_weights(model, original.files, original.contents)
    rounded = with_few_values(original.files, original.contents, weights, count)
    result = _judged(model, original, rounded, settings, target, progress)
    size = sum(map(len, rounded.contents))
    if not result.missed or target.keep:
        names = [target.path.name, *(file.name for file in original.files[1:])]
        written = _write_files(rounded.contents, names, target.path.parent, target.force)
        result = replace(result, written=written)
    return replace(result, before=size, after=size, notes=(*notes, *result.notes))


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
    first = packed.files[0].name if output is None else output.name
    names = [first, *(file.name for file in packed.files[1:])]
    if output is not None:
        check_outputs([Output(output, "-o")], [path], force=force)
    check_outputs([Output(folder / first, "-o")], [path], force=force)
    return _write_files(contents, names, folder, force, inputs=[path])


def check_pack_options(options: PackOptions, settings: Settings) -> None:
    """Raise UsageError for options that exclude each other, or a value that makes no sense."""
    ways = {"--lossless": options.lossless, "--bits": options.bits, "--size": options.size}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        raise UsageError(f"{given[0]} says how the model is packed; it excludes {given[1]}")
    if options.bits is not None and not 2 <= options.bits <= 12:
        raise UsageError(f"{options.bits} is not between 2 and 12", where="--bits")
    if options.size is not None:
        _ = options.share
    if options.lossless:
        lossy = ("max_error", "min_agreement", "data", "calibrate")
        named = [name for name in lossy if getattr(settings, name) is not None]
        if named:
            text = "--" + named[0].replace("_", "-")
            raise UsageError(f"--lossless keeps every bit; it excludes {text}")


def _read(path: Path, target: Target, settings: Settings) -> Original:
    file_kind = kind(path)
    files = model_files(path)
    inputs = [*(file.path for file in files), *input_files(settings)]
    check_outputs([Output(target.path, "-o")], inputs, force=target.force)
    return Original(file_kind, files, tuple(_content(file) for file in files))


def _content(file: ModelFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise FormatError(
            f"cannot be read: {error.strerror or error}", where=str(file.path)
        ) from error


def _judged(
    model: Model,
    original: Original,
    rounded: RoundedModel,
    settings: Settings,
    target: Target,
    progress: Progress,
) -> PackResult:
    """Run the rounded model, as a file that was written and opened again, beside the original."""
    reason = reason_not_runnable(model) if settings.verify else "--no-verify was given"
    result = PackResult((), 0, 0, rounded.rows)
    report = pipeline.inspect(model)
    with staging(target.path) as folder:
        place = original.write(rounded.contents, folder)
        try:
            reopened = open_with(place, replace(settings, layers=()))
        except DacconvError as error:
            fault = f"the rounded file cannot be opened again: {error.what}"
            return replace(result, missed=(fault,))
        if reason:
            result = replace(result, unverified=reason)
        else:
            check = verify(model, reopened, settings.check_options, progress=progress)
            report = replace(report, verification=check)
            result = replace(result, verification=check)
        del reopened  # its file may be mapped, and is removed now
    return replace(result, missed=tuple(missed(report, settings.gates)))


def _write_packed(packed: Packed, contents: Sequence[bytes], target: Target) -> int:
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


def _write_files(
    contents: Sequence[bytes | bytearray],
    names: Sequence[str],
    root: Path,
    force: bool,
    inputs: Sequence[Path] = (),
) -> tuple[Path, ...]:
    """Write the files of a model into a folder, the model's own last."""
    targets = [root / name for name in names]
    _make_folders({target.parent for target in targets[1:]} - {root}, root)
    check_outputs([Output(target, "-o") for target in targets], inputs, force=force)
    with replacing(*targets[1:], targets[0]) as temporaries:
        for temporary, content in zip(temporaries, [*contents[1:], contents[0]], strict=True):
            temporary.write_bytes(content)
    return tuple(targets)


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
