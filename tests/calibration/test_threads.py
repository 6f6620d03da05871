"""The same input and options give the same bytes on any number of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from dacconv.calibration import descent
from dacconv.jobs.convert import convert_file
from dacconv.settings import Settings
from dacconv.support import threads as threads_module
from dacconv.support.threads import one_blas_thread
from tests.onnx_nets import model, node, save, weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.c = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 24, 3, stride=2)

    def forward(self, x):
        return self.c(self.b(self.bn(self.a(x)).relu()).relu()).mean((2, 3))


def onnx_net(folder):
    rng = np.random.default_rng(0)
    constants = {
        "a": weights(16, 3, 3, 3), "scale": rng.uniform(0.5, 2, 16), "shift": rng.normal(size=16),
        "mean": rng.normal(size=16), "var": rng.uniform(0.1, 2, 16),
        "b": weights(24, 16, 3, 3), "c": weights(24, 24, 3, 3),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "a"], ["1"], name="a", pads=[1] * 4),
        node("BatchNormalization", ["1", "scale", "shift", "mean", "var"], ["2"], name="bn"),
        node("Relu", ["2"], ["3"]),
        node("Conv", ["3", "b"], ["4"], name="b", pads=[1] * 4),
        node("Relu", ["4"], ["5"]),
        node("Conv", ["5", "c"], ["6"], name="c", strides=[2, 2]),
        node("GlobalAveragePool", ["6"], ["7"]),
        node("Flatten", ["7"], ["y"]),
    ]
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    return save(model(nodes, constants, inputs={"x": ("n", 3, 12, 12)}), folder), {}


def torch_net(folder):
    torch.manual_seed(0)
    torch.save(Net().state_dict(), folder / "net.pth")
    return folder / "net.pth", {"arch": f"{__name__}:Net", "input_shape": ("1,3,12,12",)}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (onnx_net, Settings(macs="0.5", calibrate="distilled", calibration_images=16)),
        (
            torch_net,
            Settings(rank=2, method="spatial", calibrate="synthetic", calibration_images=8),
        ),
    ],
)
def test_bytes_are_the_same_on_one_thread_and_on_two(tmp_path, monkeypatch, make, settings):
    """One fixed thread here, so that nothing but the surroundings can make a difference."""
    monkeypatch.setattr(descent, "STEPS", dict.fromkeys(descent.STEPS, descent.FEWEST))
    monkeypatch.setattr(threads_module, "THREADS", 1)
    path, more = make(tmp_path)
    written = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        output = tmp_path / f"out{threads}{path.suffix}"
        now = replace(settings, **more, verify=False, threads=threads)
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            try:
                outcome = convert_file(path, now, output=output)
                assert torch.get_num_threads() == threads
            finally:
                torch.set_num_threads(before)
        calibration = outcome.report.calibration
        assert calibration is not None
        written.append(output.read_bytes())
    assert written[0] == written[1]


def test_threads_are_recorded_only_where_times_are_measured():
    assert Settings(rank=2, threads=2).changed() == {"rank": 2}
    assert Settings(latency="0.5", tune=True, threads=2).changed()["threads"] == 2


def test_lapack_runs_on_one_thread():
    import scipy.linalg

    a = np.random.default_rng(0).standard_normal((300, 300))
    a = a @ a.T + np.eye(300)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads), one_blas_thread():
            results.append(scipy.linalg.cho_factor(a)[0])
            assert all(
                each["num_threads"] == 1 for each in threadpool_info() if each["user_api"] == "blas"
            )
    assert (results[0] == results[1]).all()
