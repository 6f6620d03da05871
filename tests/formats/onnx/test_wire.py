from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dacconv.formats.onnx import wire
from dacconv.formats.onnx.document import pieces
from dacconv.formats.onnx.load import read
from tests.onnx_nets import conv_model, save


@given(st.integers(0, 2**63))
def test_numbers_survive(number: int) -> None:
    field = next(wire.fields(memoryview(wire.varint(3 << 3) + wire.varint(number))))
    assert (field.number, field.wire_type) == (3, wire.VARINT)


@example(b"\x80\x80\x80\x80\x10\x00")  # a field numbered 2**29
@given(st.binary(max_size=60))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    try:
        found = list(wire.fields(memoryview(data)))
    except wire.WireError:
        return
    assert (found[-1].end if found else 0) == len(data)
    assert wire.only(memoryview(data), range(1, 1 << 29)) == data


def test_parts_of_a_message_add_up() -> None:
    data = memoryview(conv_model(doc_string="told").SerializeToString())
    header = onnx.ModelProto.FromString(wire.without(data, {7}))
    assert header.doc_string == "told"
    assert not header.HasField("graph")
    graph = onnx.ModelProto.FromString(wire.only(data, {7})).graph
    assert [n.op_type for n in graph.node] == ["Conv"]


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_truncation_is_told(cut: int) -> None:
    data = conv_model().SerializeToString()
    with pytest.raises(wire.WireError, match=r"ends|middle"):
        list(wire.fields(memoryview(data[:-cut])))


def test_a_model_comes_out_as_protobuf_would_write_it(tmp_path: Path) -> None:
    proto = conv_model(doc_string="a model", producer_name="by hand")
    proto.graph.doc_string = "a graph"
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("v", 1, [2]))
    onnx.helper.set_model_props(proto, {"b": "2", "a": "1"})
    written = b"".join(pieces(read(save(proto, tmp_path))))
    assert written == proto.SerializeToString(deterministic=True)
