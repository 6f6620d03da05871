"""Hostile .pt2 archives: each is refused, or what is hostile in it is left out; nothing runs."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from dacconv.errors import FormatError
from dacconv.formats import open_model

Records = list[tuple[str, bytes]]
RAN: list[str] = []
"""What the audit hook has noticed while a file was opened."""
_watching = False


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event in ("os.system", "subprocess.Popen", "os.posix_spawn", "os.exec"):
        RAN.append(event)


sys.addaudithook(_watch)


def system(command: str) -> bytes:
    """A pickle that runs a command when it is loaded."""
    text = command.encode()
    return b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(text)) + text + b"\x85R."


def torch_zip(pickle: bytes, name: str = "data.pkl", root: str = "archive") -> bytes:
    """A file as ``torch.save`` writes it, with any pickle."""
    return packed([(f"{root}/{name}", pickle), (f"{root}/version", b"3\n"),
                   (f"{root}/byteorder", b"little")])  # fmt: skip


def packed(records: Records) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    """A program with free sizes, a BatchNorm and a linear layer."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()  # fmt: skip
    sizes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=sizes)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to open files in; afterwards, nothing has run and nothing was written."""
    global _watching
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    before = dict(os.environ)
    RAN.clear()
    _watching = True
    yield tmp_path
    _watching = False
    assert not RAN
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == {**before, "PYTEST_CURRENT_TEST": ""}


COMMAND = "touch CANARY"
EVIL = system(COMMAND)
CALL = f"__import__('os').system('{COMMAND}')"


def records_of(data: bytes) -> Records:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def with_record(data: bytes, ending: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with the record of that name changed."""
    records = records_of(data)
    assert any(name.endswith(ending) for name, _ in records)
    return packed([(n, change(d) if n.endswith(ending) else d) for n, d in records])


def with_json(data: bytes, change: Callable[[dict[str, Any]], object], ending: str) -> bytes:
    """The archive with the JSON of a record changed in place."""

    def edit(record: bytes) -> bytes:
        value = json.loads(record)
        change(value)
        return json.dumps(value).encode()

    return with_record(data, ending, edit)


def with_program(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    return with_json(data, change, "models/model.json")


def with_text(data: bytes, old: str, new: str) -> bytes:
    def edit(record: bytes) -> bytes:
        assert old.encode() in record
        return record.replace(old.encode(), new.encode())

    return with_record(data, "models/model.json", edit)


def refused(folder: Path, data: bytes, words: str = ".") -> None:
    """The file is refused in a sentence that names it."""
    (folder / "a.pt2").write_bytes(data)
    with pytest.raises(FormatError, match=words) as caught:
        open_model(folder / "a.pt2")
    assert "a.pt2: " in str(caught.value)


def graph_of(program: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = program["graph_module"]["graph"]
    return graph


def test_the_plain_program_opens(folder: Path, plain: bytes) -> None:
    (folder / "a.pt2").write_bytes(plain)
    assert [node.op for node in open_model(folder / "a.pt2").graph().nodes][:2] == [
        "conv", "affine",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "guards",
    [[CALL], ["1", CALL], [f"({CALL}) or True"], ["\n" + CALL], [f"(lambda: {CALL})()"],
     ["x" * 1_000_000]],
)  # fmt: skip
def test_guards_are_dropped(folder: Path, plain: bytes, guards: list[str]) -> None:
    data = with_program(plain, lambda program: program.update(guards_code=guards))
    (folder / "a.pt2").write_bytes(data)
    model = open_model(
        folder / "a.pt2",
    )
    model.prepared()
    model.graph()


@pytest.mark.parametrize("kind", ["weights", "constants"])
@pytest.mark.parametrize(
    "name",
    ["opaque_obj_0", "custom_obj_0", "weight_0.pt", "../weights/weight_0", "/dev/zero", "weight_",
     "weight_0/../weight_1", "WEIGHT_0", "weight_٠", ""],
)  # fmt: skip
def test_tensors_come_from_plain_records(folder: Path, plain: bytes, kind: str, name: str) -> None:
    root = records_of(plain)[0][0].partition("/")[0]
    entry = {"path_name": name, "is_param": False, "use_pickle": False, "tensor_meta": None}
    data = with_json(plain, lambda c: c["config"].update(evil=entry), f"model_{kind}_config.json")
    evil = torch_zip(EVIL)
    refused(folder, packed([*records_of(data), (f"{root}/data/{kind}/opaque_obj_0", evil)]))
    refused(folder, data)


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_pickled_tensors(folder: Path, plain: bytes, kind: str) -> None:
    name = "weight_0" if kind == "weights" else "tensor_0"
    entry = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    data = with_json(plain, lambda c: c["config"].update(evil=entry), f"model_{kind}_config.json")
    refused(folder, data, "pickled tensor")


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


PICKLES = {
    "reduce": EVIL,
    "stack global": b"\x80\x04" + _text("posix") + _text("system") + b"\x93" + _text(COMMAND)
    + b"\x85R.",
    "stack global after decoys": b"\x80\x04" + _text("collections") + _text("OrderedDict") + b"00"
    + _text("posix") + _text("system") + b"\x93" + _text(COMMAND) + b"\x85R.",
    "memoised names": b"\x80\x04" + _text("system") + b"q\x000" + _text("posix") + b"h\x00\x93"
    + _text(COMMAND) + b"\x85R.",
    "inst": b"(X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode() + b"iposix\nsystem\n.",
    "obj": b"(cposix\nsystem\n" + _text(COMMAND) + b"o.",
    "newobj": b"\x80\x02cposix\nsystem\n" + _text(COMMAND) + b"\x85\x81.",
    "dotted under torch": b"\x80\x04ctorch\nserialization.os.system\n" + _text(COMMAND) + b"\x85R.",
    "dotted under a class": b"\x80\x04ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
    "eval": b"\x80\x02cbuiltins\neval\n" + _text(CALL) + b"\x85R.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\ncposix\n_exit\nX\x01\x00\x00\x00a\x86R.",
    "torch.load": b"\x80\x02ctorch\nload\n" + _text("b.pt") + b"\x85R.",
    "import of a module": b"\x80\x02cantigravity\nopen\n" + _text("x") + b"\x85R.",
    "nested in a tuple": b"\x80\x02(cposix\nsystem\n" + _text(COMMAND) + b"\x85Rt}\x86.",
    "persistent id": b"\x80\x02(X\x07\x00\x00\x00storagecposix\nsystem\nX\x01\x00\x00\x000tQ.",
    "build": b"\x80\x02ccollections\nOrderedDict\n)R}" + _text("__setstate__")
    + b"cposix\nsystem\nsb" + _text(COMMAND) + b"b.",
    "cut short": EVIL[:-1],
    "nothing": b".",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("kind", ["archive", "legacy", "both"])
def test_sample_inputs_are_tensors(folder: Path, plain: bytes, name: str, kind: str) -> None:
    evil = PICKLES[name]
    record = {
        "archive": torch_zip(evil),
        "legacy": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + evil,
        "both": evil + torch_zip(b"\x80\x02)}\x86."),
    }[kind]
    refused(folder, with_record(plain, "sample_inputs/model.pt", lambda _: record))


MAIN = ["models/model.json", "sample_inputs/model.pt", "model_weights_config.json", "weight_0"]


@pytest.mark.parametrize("ending", MAIN)
@pytest.mark.parametrize("evil_first", [True, False])
def test_a_record_that_is_there_twice(
    folder: Path, plain: bytes, ending: str, evil_first: bool
) -> None:
    records = records_of(plain)
    name = next(name for name, _ in records if name.endswith(ending))
    twin = (name, torch_zip(EVIL))
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = packed([twin, *records] if evil_first else [*records, twin])
    refused(folder, data, "two records")


@pytest.mark.parametrize("ending", MAIN)
@pytest.mark.parametrize("change", [str.upper, str.title, str.swapcase])
def test_names_that_differ_in_case(
    folder: Path, plain: bytes, ending: str, change: Callable[[str], str]
) -> None:
    records = records_of(plain)
    name = next(name for name, _ in records if name.endswith(ending))
    root, _, rest = name.partition("/")
    refused(folder, packed([*records, (f"{root}/{change(rest)}", torch_zip(EVIL))]), "two records")


@pytest.mark.parametrize(
    "name",
    ["models/other.json", "models/model.json.bak", "data/sample_inputs/other.pt", "code/a.py",
     "data/aotinductor/model/a.so", "data/weights/a.so", "data/constants/opaque_obj_0",
     "constants.pkl", "data.pkl", "version"],
)  # fmt: skip
def test_records_of_no_program(folder: Path, plain: bytes, name: str) -> None:
    root = records_of(plain)[0][0].partition("/")[0]
    refused(folder, packed([*records_of(plain), (f"{root}/{name}", torch_zip(EVIL))]))


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\b", "other/data.pkl", "a//b", "."])
def test_names_that_lead_out_of_the_archive(folder: Path, plain: bytes, name: str) -> None:
    refused(folder, packed([*records_of(plain), (name, EVIL)]))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("evil", [EVIL, torch_zip(EVIL)], ids=["pickle", "archive"])
def test_two_formats_in_one_file(folder: Path, plain: bytes, place: str, evil: bytes) -> None:
    refused(folder, evil + plain if place == "before" else plain + evil)


@pytest.mark.parametrize("ending", [*MAIN, "archive_format", "model_constants_config.json"])
@pytest.mark.parametrize("part", ["data", "local name", "checksum"])
def test_damaged_records(folder: Path, plain: bytes, ending: str, part: str) -> None:
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(ending))
    at = entry.header_offset
    offset = {"local name": 30, "checksum": 14, "data": 30 + len(entry.filename)}[part]
    if part == "data":
        offset += struct.unpack("<H", plain[at + 28 : at + 30])[0]
    damaged = bytearray(plain)
    damaged[at + offset] ^= 1
    refused(folder, bytes(damaged))


@pytest.mark.parametrize(
    "expression",
    [CALL, f"Symbol('s0') + {CALL}", "eval('1')", "exec('1')", "open('CANARY', 'w')",
     "Symbol.__init__.__globals__", "s0.func", "().__class__.__base__.__subclasses__()",
     "[x for x in (1,)]", "(lambda: 1)()", "f'{1}'", "'a' * 10**9", "9**9**9**9", "2**10**8",
     "Pow(9, Pow(9, 9))", "factorial(10**9)", "Add(" * 500 + "1" + ")" * 500, "1 if s0 else 2",
     "s0[0]", "s0 := 1", "Symbol('s0', positive=__import__('os'))", "Symbol(CALL)", "S('1')",
     "sympify('1')", "Function('f')(s0)", "await s0", "\\x00", "", "s0; s0", "𝓼0", "{s0}"],
)  # fmt: skip
def test_expressions_are_arithmetic(folder: Path, plain: bytes, expression: str) -> None:
    def change(program: dict[str, Any]) -> None:
        graph_of(program)["tensor_values"]["input"]["sizes"][0]["as_expr"]["expr_str"] = expression

    refused(folder, with_program(plain, change), "expression")


@pytest.mark.parametrize(
    "target",
    ["os.system", "posix.system", "torch.os.system", "torch.hub.load", "torch.load",
     "torch.save", "torch.classes.load_library", "torch.ops.load_library", "builtins.eval",
     "_operator.attrgetter", "_operator.methodcaller", "_operator.call", "_operator.setitem",
     "math.__loader__.load_module", "math.factorial", "torch.sym_fresh_size",
     "torch.ops.aten.from_file.default", "torch.ops.aten.from_file.out",
     "torch.ops.aten.set_.source_Storage", "torch.ops.aten.resize_.default",
     "torch.ops.aten.as_strided.default", "torch.ops.aten.as_strided_.default",
     "torch.ops.aten._print.default", "torch.ops.aten.pin_memory.default",
     "torch.ops.aten.record_stream.default", "torch.ops.aten._cslt_compress.default",
     "torch.ops.aten.to_sparse.default", "torch.ops.aten.relu.__class__",
     "torch.ops.aten.relu.default.__call__", "torch.ops.aten.__class__.__init__",
     "torch.ops.aten.list.t", "torch.ops.aten.warn.default", "torch.ops.aten.get_gradients.default",
     "torch.ops.aten.save.default", "torch.ops.c10d.broadcast_.default",
     "torch.ops._c10d_functional.all_reduce.default",
     "torch.ops.symm_mem.one_shot_all_reduce.default",
     "torch.ops.higher_order.wrap", "torch.ops.higher_order.triton_kernel_wrapper_functional",
     "torch.ops.higher_order.run_const_graph", "torch.ops.higher_order.call_torchbind",
     "torch.ops.inductor.accumulate_grad_.default", "torch.ops.mylib.anything.default",
     "torch.ops.prims.device_put.default", "torch.ops.profiler._record_function_enter.default",
     "torch.ops.quantized.conv2d.new", "torch.ops.image.read_file.default",
     "torch.ops.image.write_file.default", "torch.ops.torchaudio.load.default", "#extension", ""],
)  # fmt: skip
def test_operators_that_no_program_of_tensors_has(folder: Path, plain: bytes, target: str) -> None:
    def change(program: dict[str, Any]) -> None:
        node = next(n for n in graph_of(program)["nodes"] if "relu" in n["target"])
        node["target"] = target

    refused(folder, with_program(plain, change), "a call of")
    operator: Any = {"as_operator": target}
    node = {"target": "torch.ops.aten.relu.default", "name": "b", "metadata": {},
            "outputs": [{"as_tensor": {"name": "b"}}], "is_hop_single_tensor_return": None,
            "inputs": [{"name": "self", "arg": operator, "kind": 1}]}  # fmt: skip
    refused(folder, with_program(plain, lambda program: graph_of(program)["nodes"].append(node)))


@pytest.mark.parametrize(
    "name",
    [f"x=({CALL})", f"x: {CALL}", "x\n    import os", "a.b", "a b", "a;b", "a'b", "0a", "x" * 600],
)
def test_names_are_names(folder: Path, plain: bytes, name: str) -> None:
    quoted = json.dumps(name)[1:-1]
    refused(folder, with_text(plain, '"conv2d"', f'"{quoted}"'), "the name")
    refused(folder, with_text(plain, '"forward_arg_names": ["input"]',
                              f'"forward_arg_names": ["{quoted}"]'), "the name")  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["os.system", "builtins.type", "collections.namedtuple", "argparse.Namespace", None, 3]
)
def test_structures_of_inputs_are_plain(folder: Path, plain: bytes, kind: Any) -> None:
    tree = json.dumps([1, {"type": kind, "context": '"touch CANARY"', "children_spec": []}])

    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = tree

    refused(folder, with_program(plain, change), "a class of its own")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"as_custom_obj": {"name": "o", "class_fqn": "a.b"}}, "custom class"),
        ({"as_string": COMMAND}, "wrong kind"),
        ({"as_device": {"type": "cpu:0; import os", "index": None}}, "the device"),
        ({"as_unknown": 1}, "no kind that is known"),
        ({"as_tensor": {"name": "input"}, "as_int": 1}, "no kind that is known"),
        ({}, "no kind that is known"),
        ([], "not a dict"),
    ],
)
def test_arguments_are_of_known_kinds(
    folder: Path, plain: bytes, argument: Any, words: str
) -> None:
    def change(program: dict[str, Any]) -> None:
        graph_of(program)["nodes"][0]["inputs"][0]["arg"] = argument

    refused(folder, with_program(plain, change), words)


@pytest.mark.parametrize(
    "spec",
    [
        {"custom_obj": {"arg": {"name": "o", "class_fqn": "a.b"}, "custom_obj_name": "o"}},
        {"token": {"arg": {"name": "t"}}},
        {"parameter": {"arg": {"name": "p_0_weight"}, "parameter_name": "__class__.\n"}},
        {"tensor_constant": {"arg": {"name": "input"}, "tensor_constant_name": "missing"}},
    ],
)
def test_inputs_of_other_kinds(folder: Path, plain: bytes, spec: Any) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["signature"]["input_specs"][0] = spec

    refused(folder, with_program(plain, change))


@pytest.mark.parametrize(
    ("key", "text"),
    [("nn_module_stack", f"a,b,{CALL}"), ("source_fn_stack", f"a,{CALL}"), ("torch_fn", CALL),
     ("source_fn_stack", "a,os.system"), ("custom", CALL), ("stack_trace", CALL)],
)  # fmt: skip
def test_where_a_call_comes_from_is_text(folder: Path, plain: bytes, key: str, text: str) -> None:
    def change(program: dict[str, Any]) -> None:
        graph_of(program)["nodes"][0]["metadata"] = {key: text}

    (folder / "a.pt2").write_bytes(with_program(plain, change))
    assert open_model(folder / "a.pt2").graph().nodes
