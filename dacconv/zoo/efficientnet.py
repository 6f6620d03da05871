"""EfficientNet-Lite0: EfficientNet-B0 (arXiv 1905.11946) with ReLU6 and no squeeze-excite.

:class:`EfficientNetLite0` has the parameter names of timm; :class:`EfficientNetLitePyTorch` has
those of the package ``efficientnet-lite-pytorch``, whose weights are the TensorFlow ones: it pads
as TensorFlow does and its BatchNorm adds 0.001 to the variance.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dacconv.zoo.layers import divisible, pad_as_tensorflow

STAGES = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1),
)  # fmt: skip
"""Expansion, kernel, outputs, repetitions and stride of the inverted residuals."""
TENSORFLOW_EPS = 1e-3


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


class Block(nn.Module):
    """An inverted residual with the names of timm; the first stage has no expansion."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, tensorflow: bool
    ) -> None:
        super().__init__()
        hidden, eps = inputs * expansion, TENSORFLOW_EPS if tensorflow else 1e-5
        self.kernel, self.stride, self.tensorflow = kernel, stride, tensorflow
        padding = 0 if tensorflow else kernel // 2
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False)
        self.expands = expansion > 1
        if expansion > 1:
            self.conv_pw = _pointwise(inputs, hidden)
            self.bn1 = nn.BatchNorm2d(hidden, eps)
            self.conv_dw = depthwise
            self.bn2 = nn.BatchNorm2d(hidden, eps)
            self.conv_pwl = _pointwise(hidden, outputs)
            self.bn3 = nn.BatchNorm2d(outputs, eps)
        else:
            self.conv_dw = depthwise
            self.bn1 = nn.BatchNorm2d(hidden, eps)
            self.conv_pw = _pointwise(hidden, outputs)
            self.bn2 = nn.BatchNorm2d(outputs, eps)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = F.relu6(self.bn1(self.conv_pw(x))) if self.expands else x
        if self.tensorflow:
            y = pad_as_tensorflow(y, self.kernel, self.stride)
        if self.expands:
            y = F.relu6(self.bn2(self.conv_dw(y)))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = F.relu6(self.bn1(self.conv_dw(y)))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """Inverted residuals and a linear head, with the names of timm.

    With ``tensorflow`` it is timm's ``tf_efficientnet_lite0``, which pads as TensorFlow does; the
    names and shapes of the parameters are the same. ``width`` rounds to multiples of 8.
    """

    def __init__(
        self,
        classes: int = 1000,
        channels: int = 3,
        width: float = 1.0,
        tensorflow: bool = False,
    ) -> None:
        super().__init__()
        eps, self.tensorflow = TENSORFLOW_EPS if tensorflow else 1e-5, tensorflow
        inputs, last = divisible(32 * width), divisible(1280 * width)
        padding = 0 if tensorflow else 1
        self.conv_stem = nn.Conv2d(channels, inputs, 3, 2, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs, eps)
        self.blocks = nn.Sequential()
        for expansion, kernel, base, repetitions, stride in STAGES:
            stage, outputs = nn.Sequential(), divisible(base * width)
            for index in range(repetitions):
                first = stride if index == 0 else 1
                stage.append(Block(inputs, outputs, expansion, kernel, first, tensorflow))
                inputs = outputs
            self.blocks.append(stage)
        self.conv_head = _pointwise(inputs, last)
        self.bn2 = nn.BatchNorm2d(last, eps)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        if self.tensorflow:
            x = pad_as_tensorflow(x, 3, 2)
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        x = F.relu6(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((2, 3)))


class BlockPyTorch(nn.Module):
    """An inverted residual with the names of ``efficientnet-lite-pytorch``."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        hidden, eps = inputs * expansion, TENSORFLOW_EPS
        self.kernel, self.stride, self.expands = kernel, stride, expansion > 1
        if expansion > 1:
            self._expand_conv = _pointwise(inputs, hidden)
            self._bn0 = nn.BatchNorm2d(hidden, eps)
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, eps)
        self._project_conv = _pointwise(hidden, outputs)
        self._bn2 = nn.BatchNorm2d(outputs, eps)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = pad_as_tensorflow(y, self.kernel, self.stride)
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


class EfficientNetLitePyTorch(nn.Module):
    """EfficientNet-Lite0 with the names of ``efficientnet-lite-pytorch``.

    Input ``(batch, 3, 224, 224)``: RGB in 0..255, minus 127, over 128.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inputs, last = divisible(32 * width), divisible(1280 * width)
        self._conv_stem = nn.Conv2d(channels, inputs, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(inputs, TENSORFLOW_EPS)
        self._blocks = nn.ModuleList()
        for expansion, kernel, base, repetitions, stride in STAGES:
            outputs = divisible(base * width)
            for index in range(repetitions):
                first = stride if index == 0 else 1
                self._blocks.append(BlockPyTorch(inputs, outputs, expansion, kernel, first))
                inputs = outputs
        self._conv_head = _pointwise(inputs, last)
        self._bn1 = nn.BatchNorm2d(last, TENSORFLOW_EPS)
        self._fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = F.relu6(self._bn0(self._conv_stem(pad_as_tensorflow(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))
