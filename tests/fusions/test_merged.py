from __future__ import annotations

import gc
import weakref

from conv_reference import make_affine, make_conv
from toy import Toy

import dacconv.fusions.merged as merging
from dacconv.fusions import find_fusions
from dacconv.fusions.merged import merged_model


class Model(Toy):
    """A toy that can be a key, as the models of the formats can."""

    __hash__ = object.__hash__


def conv_norm() -> Model:
    net = Model()
    value = net.conv_node(net.input(1, 4, 6, 6), make_conv(0, 4, 4, (3, 3)))
    net.outputs = (net.bn(value, make_affine(0, 4)),)
    return net


def test_the_fusions_of_a_model_are_found_once(monkeypatch):
    calls = []

    def find(model):
        calls.append(model)
        return find_fusions(model)

    monkeypatch.setattr(merging, "find_fusions", find)
    net, other = conv_norm(), conv_norm()
    assert merged_model(net).edits.keys() == merged_model(net).edits.keys() == {"conv0"}
    merged_model(other)
    assert calls == [net, other]


def test_a_model_is_not_written_to_and_not_kept_alive():
    net = conv_norm()
    before = dict(vars(net))
    merged_model(net).graph()
    assert vars(net) == before
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
