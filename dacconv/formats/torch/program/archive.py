"""The records of a .pt2 as values: the checked program, its tensors, its sample inputs, its texts.

Nothing is unpickled but the sample inputs, by torch's unpickler for tensors alone. Weights and
constants are raw bytes, whose sizes, strides and offsets are held against the record that they
are in.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from dacconv.formats.torch.files.pickles import told, wanted_in
from dacconv.formats.torch.program.schema import MOST_JSON, read_payload, read_program
from dacconv.formats.torch.program.texts import RefusedError
from dacconv.support.archives import Archive, ArchiveError

MOST_EXTRAS = 64 << 20
"""Bytes of the extra files of an archive."""
MOST_SAMPLES = 1 << 30
"""Bytes of the sample inputs."""
MOST_EXPANDED = 64 << 20
"""Bytes that a tensor may have beyond four times its record, when its strides repeat elements."""

_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_TENSORS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version",
          ".data/serialization_id", ".format_version", ".storage_alignment")  # fmt: skip
_RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,9}", re.ASCII)
_OLD = "serialized_exported_program.json"


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a .pt2 holds. ``samples`` are the arguments and keyword arguments of an example."""

    program: schema.ExportedProgram
    weights: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    samples: tuple[tuple[Any, ...], dict[str, Any]]
    extras: Mapping[str, str]


def read_contents(archive: Archive) -> Contents:
    """Everything of an archive that a program is built from.

    Raises:
        RefusedError: it holds something that is not plainly data.
        ValueError, KeyError: it is damaged.
    """
    records = _records(archive)
    _check_names(records)
    if bytes(archive.read(records["archive_format"], 16)) != b"pt2":
        raise ArchiveError("its archive_format is not pt2")
    if "byteorder" in records and bytes(archive.read(records["byteorder"], 16)) != b"little":
        raise RefusedError("numbers in another byte order")
    for short in _PLAIN:
        if short in records:
            archive.read(records[short], 1 << 16)
    program = read_program(archive.read(records[_PROGRAM], MOST_JSON))
    weights, constants = (
        _tensors(archive, records, folder, config) for folder, config in _TENSORS.items()
    )
    _check_stored(program.graph_module, {**constants, **weights})
    samples = _samples(bytes(archive.read(records[_SAMPLES], MOST_SAMPLES)))
    return Contents(program, weights, constants, samples, extra_files(archive))


def extra_files(archive: Archive) -> dict[str, str]:
    """The extra files of an archive, which saving must keep, by name."""
    result, room = {}, MOST_EXTRAS
    for short, name in _records(archive).items():
        if short.startswith("extra/"):
            data = archive.read(name, room)
            room -= len(data)
            result[short.removeprefix("extra/")] = data.decode("utf-8")
    return result


def _records(archive: Archive) -> dict[str, str]:
    """The names of the records without the folder that they all lie in, and as they are."""
    names = [name for name in archive.records if not name.endswith("/")]
    roots = {name.partition("/")[0] for name in names}
    if any(name == _OLD for name in names):
        raise RefusedError("pickled weights, in the layout of torch 2.7 and before")
    if len(roots) != 1:
        raise ArchiveError("its records are not all in one folder")
    return {name.partition("/")[2]: name for name in names}


def _check_names(records: Mapping[str, str]) -> None:
    """RefusedError for a record that no program of tensors has; KeyError for one that it lacks."""
    for short in ("archive_format", _PROGRAM, _SAMPLES, *_TENSORS.values()):
        if short not in records:
            raise KeyError(f"the record {short} is missing")
    known = {*_PLAIN, _PROGRAM, _SAMPLES, *_TENSORS.values()}
    for short in records:
        if short in known or short.startswith("extra/") or _RAW.fullmatch(short):
            continue
        if short.startswith("data/aotinductor/") or short.endswith((".so", ".o", ".cubin")):
            raise RefusedError(f"compiled code ({short[:100]!a})")
        if short.startswith("data/constants/"):
            raise RefusedError(f"a constant that is no plain tensor ({short[:100]!a})")
        if short.startswith(("models/", "data/sample_inputs/")):
            raise RefusedError(f"a second program ({short[:100]!a})")
        raise RefusedError(f"a record that is none of the format ({short[:100]!a})")


def _tensors(
    archive: Archive, records: Mapping[str, str], folder: str, config: str
) -> dict[str, torch.Tensor]:
    """The tensors of a folder by name; those of one record share their memory."""
    held: dict[str, torch.Tensor] = {}
    result: dict[str, torch.Tensor] = {}
    for name, entry in read_payload(archive.read(records[config], MOST_JSON)).items():
        if entry.use_pickle or entry.tensor_meta is None:
            raise RefusedError(f"a pickled tensor ({name})")
        short = folder + entry.path_name
        if short not in records:
            raise KeyError(f"the record {short} is missing")
        if short not in held:
            data = archive.read(records[short])
            held[short] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.zeros(0)
        tensor = _tensor(held[short], entry.tensor_meta, name)
        if entry.is_param:
            tensor = torch.nn.Parameter(tensor, requires_grad=entry.tensor_meta.requires_grad)
        result[name] = tensor
    return result


def _check_stored(module: schema.GraphModule, tensors: Mapping[str, torch.Tensor]) -> None:
    """ValueError where the graph needs a tensor that is not there, or is of another kind there."""
    for spec in module.signature.input_specs:
        match spec.value:
            case schema.InputToParameterSpec(arg=argument, parameter_name=name):
                pass
            case schema.InputToBufferSpec(arg=argument, buffer_name=name):
                pass
            case schema.InputToTensorConstantSpec(arg=argument, tensor_constant_name=name):
                pass
            case _:
                continue
        if name not in tensors or argument.name not in module.graph.tensor_values:
            raise KeyError(f"the tensor {name!a} is missing")
        tensor, meta = tensors[name], module.graph.tensor_values[argument.name]
        sizes = [size.value if size.type == "as_int" else None for size in meta.sizes]
        dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta.dtype)
        if sizes != list(tensor.shape) or dtype != tensor.dtype:
            raise ValueError(
                f"{name} is stored as {list(tensor.shape)} of {tensor.dtype}, and is {sizes} of "
                f"{dtype} in the graph"
            )


def _tensor(record: torch.Tensor, meta: schema.TensorMeta, name: str) -> torch.Tensor:
    """The tensor that lies in the bytes of a record; ValueError where it does not fit in them."""
    dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta.dtype)
    if dtype is None or meta.layout != schema.Layout.Strided:
        raise RefusedError(f"a tensor of an odd kind ({name})")
    sizes, strides = ([_whole(each) for each in each] for each in (meta.sizes, meta.strides))
    offset = _whole(meta.storage_offset)
    if len(sizes) != len(strides) or min([offset, *sizes, *strides]) < 0 or len(sizes) > 64:
        raise ValueError(f"the sizes and strides of {name} do not fit")
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    width = dtype.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if (last + 1) * width > record.nbytes:
        raise ValueError(f"{name} is larger than its record, or has no values")
    count = width
    for size in sizes:
        count *= size
    if count > MOST_EXPANDED + 4 * record.nbytes:
        raise ValueError(f"{name} is far larger than its record")
    whole = record[: record.nbytes // width * width].view(dtype)
    tensor = whole.as_strided(sizes, strides, offset)
    return tensor.to(meta.device.type) if meta.device.type != "cpu" else tensor


def _whole(value: schema.SymInt) -> int:
    if value.type != "as_int":
        raise ValueError("a stored tensor has a size that is not a number")
    return int(value.value)


def _samples(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The sample inputs.

    Raises:
        RefusedError: a pickle of more than tensors.
    """
    with Archive(data) as inner:
        inner.check()
    try:
        samples = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = told(wanted_in(data)) or "a pickle of more than tensors"
        raise RefusedError(f"{wanted} (in its sample inputs)") from error
    except Exception as error:
        raise ValueError(f"its sample inputs cannot be read: {error}") from error
    match samples:
        case (tuple() as args, dict() as named) if all(isinstance(key, str) for key in named):
            return tuple(map(_plain, args)), {key: _plain(each) for key, each in named.items()}
    raise ValueError("its sample inputs are no arguments")


def _plain(value: Any) -> Any:
    """Tensors without the attributes that a pickle, or ``torch.export``, has put on them."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value
