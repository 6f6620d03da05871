"""Where the float tensors of a .pt2 archive lie."""

from __future__ import annotations

from pathlib import Path

from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from dacconv.formats.spans import (
    WIDTHS,
    ModelFile,
    Span,
    disjoint,
    is_contiguous,
    storage_spans,
)
from dacconv.formats.torch.files.spans import archive_checksums
from dacconv.formats.torch.program.schema import MOST_JSON, read_payload
from dacconv.support.archives import Archive

_FOLDERS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}


def model_files(path: Path) -> tuple[ModelFile, ...]:
    """The archive with its float tensors; with no spans where its tensors are pickled."""
    with Archive(path) as archive:
        try:
            spans = [span for folder in _FOLDERS for span in _spans(archive, folder)]
        except Exception:  # an older layout: it is packed as bytes
            spans = []
        checksums = archive_checksums(archive)
        return (ModelFile(path, path.name, disjoint(spans, archive.size), checksums),)


def _spans(archive: Archive, folder: str) -> list[Span]:
    roots = {name.partition("/")[0] for name in archive.records}
    (root,) = roots
    config = archive.read(f"{root}/{_FOLDERS[folder]}", MOST_JSON)
    tensors: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}
    dtypes: dict[str, set[str]] = {}
    for name, entry in read_payload(config).items():
        meta = entry.tensor_meta
        if entry.use_pickle or meta is None:
            continue
        shape, strides = (
            tuple(int(each.value) for each in values) for values in (meta.sizes, meta.strides)
        )
        dtype = str(_SERIALIZE_TO_TORCH_DTYPE[meta.dtype]).removeprefix("torch.")
        record = f"{root}/{folder}{entry.path_name}"
        dtypes.setdefault(record, set()).add(dtype)
        if not is_contiguous(shape, strides):
            dtypes[record].add("strided")
        place = (int(meta.storage_offset.value), shape)
        tensors.setdefault(record, {})[name] = place
    spans: list[Span] = []
    for record, inside in tensors.items():
        at = archive.records.get(record)
        names = dtypes[record] - {"strided"}
        dtype = next(iter(names))
        if at is None or not at.stored or len(names) > 1 or dtype not in WIDTHS:
            continue
        plain = inside if "strided" not in dtypes[record] else {}
        spans += storage_spans(at.start, at.size // WIDTHS[dtype], dtype, plain)
    return spans
