"""The networks that the measurements use, and the one that the repository carries."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from scripts import archs, export_onnx
from scripts.train_fashion import augment, load_arch, read_idx, read_split


def fashion_net(assets: Path) -> torch.nn.Module:
    net = load_arch().FashionNet()
    net.load_state_dict(torch.load(assets / "fashion.pth", weights_only=True))
    return net.eval()


def noisy(net: torch.nn.Module) -> torch.nn.Module:
    """The module with random BatchNorm statistics, so that leaving one out shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean):
                    value.add_(0.1 * torch.randn_like(value))
                module.running_var.mul_(1 + torch.rand_like(module.running_var))
    return net.eval()


def test_the_carried_checkpoint_recognises_clothes(assets: Path) -> None:
    held = np.load(assets / "fashion_test.npz")
    assert held["x"].shape == (2000, 28, 28)
    assert held["x"].dtype == np.uint8
    arch = load_arch()
    x = (torch.from_numpy(held["x"][:500]).float()[:, None] / 255 - arch.MEAN) / arch.STD
    with torch.no_grad():
        guesses = fashion_net(assets)(x).argmax(1).numpy()
    assert (guesses == held["y"][:500]).mean() > 0.92


def test_the_carried_onnx_file_is_the_checkpoint(assets: Path) -> None:
    model = onnx.load(assets / "fashion.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == kinds.count("BatchNormalization") == 6
    assert export_onnx.disagreement(model, fashion_net(assets), (3, 1, 28, 28)) < 1e-5


def test_the_writer_makes_the_carried_onnx_file(assets: Path) -> None:
    state = torch.load(assets / "fashion.pth", weights_only=True)
    made = export_onnx.fashion(export_onnx.arrays(state)).SerializeToString(deterministic=True)
    carried = onnx.load(assets / "fashion.onnx").SerializeToString(deterministic=True)
    assert hashlib.sha256(made).digest() == hashlib.sha256(carried).digest()


@pytest.mark.parametrize(
    ("write", "net", "shape"),
    [
        (export_onnx.resnet20, archs.ResNet20(), (2, 3, 32, 32)),
        (export_onnx.dncnn, archs.DnCNN(depth=4, width=8), (2, 1, 9, 12)),
    ],
    ids=["resnet20", "dncnn"],
)
def test_written_graphs_agree_with_torch(write, net, shape) -> None:
    net = noisy(net)
    model = write(export_onnx.arrays(net.state_dict()))
    assert export_onnx.disagreement(model, net, shape) < 1e-5


def test_vgg16_has_torchvisions_positions() -> None:
    with torch.device("meta"):
        net = archs.VGG16Probe()
    convs = [i for i, layer in enumerate(net.features) if isinstance(layer, torch.nn.Conv2d)]
    assert convs == [i for i in export_onnx.VGG16_CONVS if i >= 0]


def test_augmentation_shifts_flips_and_scales() -> None:
    torch.manual_seed(0)
    images = torch.arange(28.0).expand(64, 1, 28, 28)
    moved = augment(images, 28)
    assert moved.shape == images.shape
    starts = {row[14] - row[13] for row in moved[:, 0, 14].numpy()}
    assert starts == {1.0, -1.0}  # some flipped, some not
    assert augment(images, 20).shape == (64, 1, 20, 20)


def test_a_missing_data_set_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="dataset-fashion-mnist"):
        read_split(tmp_path, "train")
    wrong = tmp_path / "wrong.gz"
    wrong.write_bytes(gzip.compress(b"text"))
    with pytest.raises(SystemExit, match="not an idx file"):
        read_idx(wrong)
