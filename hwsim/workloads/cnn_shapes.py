"""Convolutional networks of ImageNet (224 x 224 pixels, 1000 classes), layer by layer as torchvision names them."""

from __future__ import annotations

from hwsim.workloads.graph import Builder, Conv, Role, Vector

PIXELS = 224
CLASSES = 1000
ROW = tuple[int, ...]

BASIC_STAGES = (2, 2, 2, 2)
"""ResNet-18's blocks of two 3 x 3 convolutions"""
BOTTLENECK_STAGES = (3, 4, 6, 3)
"""ResNet-50's blocks of 1 x 1, 3 x 3 and 1 x 1"""
MOBILENET_V2: tuple[ROW, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""expansion, channels, blocks, stride of the first: Sandler et al., Table 2"""


def image(b: Builder, batch: int) -> str:
    return b.tensor("image", (batch, 3, PIXELS, PIXELS))


def convolution(b: Builder, name: str, x: str, out: int, size: int, *, stride: int = 1, groups: int = 1) -> str:
    """A square kernel of odd `size`, padded to keep the image's size at a stride of 1."""
    return _padded(b, name, x, out, size, stride, size // 2, groups)


def _padded(b: Builder, name: str, x: str, out: int, size: int, stride: int, padding: int, groups: int = 1) -> str:
    batch, channels, height, width = b.tensors[x].shape
    op = Conv(
        batch=batch,
        in_channels=channels,
        out_channels=out,
        height=height,
        width=width,
        kernel=(size, size),
        stride=(stride, stride),
        padding=(padding,) * 4,
        groups=groups,
    )
    filters = b.tensor(f"{name}.weight", (out, channels // groups, size, size), Role.WEIGHT)
    return b.add(name, op, (x, filters), (batch, out, *op.output))


def max_pool(b: Builder, name: str, x: str, *, padding: int = 0) -> str:
    """Windows of 3 x 3 at a stride of 2."""
    batch, channels, height, width = b.tensors[x].shape
    high, wide = ((size + 2 * padding - 3) // 2 + 1 for size in (height, width))
    op = Vector(kind="maxpool", rows=batch * channels * high * wide, channels=9)
    return b.add(name, op, (x,), (batch, channels, high, wide))


def mean(b: Builder, name: str, x: str) -> str:
    """Of each channel's pixels: [batch, channels]."""
    batch, channels, height, width = b.tensors[x].shape
    op = Vector(kind="avgpool", rows=batch * channels, channels=height * width)
    return b.add(name, op, (x,), (batch, channels))


# ------------------------------------------------------------------------------------------------ ResNet


def resnet18(b: Builder, batch: int) -> None:
    x = _stem(b, batch)
    for stage, blocks in enumerate(BASIC_STAGES):
        for i in range(blocks):
            x = _basic(b, f"layer{stage + 1}.{i}", x, 64 << stage, 2 if stage and i == 0 else 1)
    b.linear("fc", mean(b, "avgpool", x), CLASSES)


def resnet50(b: Builder, batch: int) -> None:
    """Version 1.5: where a stage shrinks the image, the 3 x 3 convolution does, not the 1 x 1 before it."""
    x = _stem(b, batch)
    for stage, blocks in enumerate(BOTTLENECK_STAGES):
        for i in range(blocks):
            x = _bottleneck(b, f"layer{stage + 1}.{i}", x, 64 << stage, 2 if stage and i == 0 else 1)
    b.linear("fc", mean(b, "avgpool", x), CLASSES)


def _stem(b: Builder, batch: int) -> str:
    x = convolution(b, "conv1", image(b, batch), 64, 7, stride=2)
    x = b.vector("relu", "relu", b.vector("bn1", "batchnorm", x))
    return max_pool(b, "maxpool", x, padding=1)


def _basic(b: Builder, at: str, x: str, width: int, stride: int) -> str:
    y = b.vector(f"{at}.bn1", "batchnorm", convolution(b, f"{at}.conv1", x, width, 3, stride=stride))
    y = b.vector(f"{at}.relu1", "relu", y)
    y = b.vector(f"{at}.bn2", "batchnorm", convolution(b, f"{at}.conv2", y, width, 3))
    return _joined(b, at, x, y, stride)


def _bottleneck(b: Builder, at: str, x: str, width: int, stride: int) -> str:
    y = x
    for i, (out, size, step) in enumerate(((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)), 1):
        y = b.vector(f"{at}.bn{i}", "batchnorm", convolution(b, f"{at}.conv{i}", y, out, size, stride=step))
        y = b.vector(f"{at}.relu{i}", "relu", y) if i < 3 else y
    return _joined(b, at, x, y, stride)


def _joined(b: Builder, at: str, x: str, y: str, stride: int) -> str:
    """The block's input, projected where its shape is another, added to its output."""
    channels = b.tensors[y].shape[1]
    if b.tensors[x].shape != b.tensors[y].shape:
        x = convolution(b, f"{at}.downsample.0", x, channels, 1, stride=stride)
        x = b.vector(f"{at}.downsample.1", "batchnorm", x)
    return b.vector(f"{at}.relu", "relu", b.vector(f"{at}.add", "add", y, x))


# ------------------------------------------------------------------------------------------------ MobileNet V2


def mobilenet_v2(b: Builder, batch: int) -> None:
    x = _clipped(b, "features.0", image(b, batch), 32, 3, stride=2)
    index = 1
    for expansion, channels, blocks, stride in MOBILENET_V2:
        for i in range(blocks):
            x = _inverted(b, f"features.{index}", x, expansion, channels, stride if i == 0 else 1)
            index += 1
    x = _clipped(b, f"features.{index}", x, 1280, 1)
    b.linear("classifier.1", mean(b, "avgpool", x), CLASSES)


def _clipped(b: Builder, at: str, x: str, out: int, size: int, *, stride: int = 1, groups: int = 1) -> str:
    """Convolution, batch normalization, ReLU6."""
    y = convolution(b, f"{at}.0", x, out, size, stride=stride, groups=groups)
    return b.vector(f"{at}.2", "clip", b.vector(f"{at}.1", "batchnorm", y))


def _inverted(b: Builder, at: str, x: str, expansion: int, out: int, stride: int) -> str:
    """An inverted residual: expand, a kernel for each channel, project; added to x where the shapes are the same."""
    channels = b.tensors[x].shape[1]
    hidden, first = expansion * channels, int(expansion > 1)
    y = _clipped(b, f"{at}.conv.0", x, hidden, 1) if first else x
    y = _clipped(b, f"{at}.conv.{first}", y, hidden, 3, stride=stride, groups=hidden)
    y = convolution(b, f"{at}.conv.{first + 1}", y, out, 1)
    y = b.vector(f"{at}.conv.{first + 2}", "batchnorm", y)
    return b.vector(f"{at}.add", "add", x, y) if b.tensors[x].shape == b.tensors[y].shape else y


# ------------------------------------------------------------------------------------------------ AlexNet


def alexnet(b: Builder, batch: int) -> None:
    """The network of one column: convolutions read all channels."""
    x = _padded(b, "features.0", image(b, batch), 64, 11, 4, 2)
    x = max_pool(b, "features.2", b.vector("features.1", "relu", x))
    x = b.vector("features.4", "relu", convolution(b, "features.3", x, 192, 5))
    x = max_pool(b, "features.5", x)
    for index, out in ((6, 384), (8, 256), (10, 256)):
        x = b.vector(f"features.{index + 1}", "relu", convolution(b, f"features.{index}", x, out, 3))
    x = _flat(b, max_pool(b, "features.12", x))
    for index in (1, 4):
        x = b.vector(f"classifier.{index + 1}", "relu", b.linear(f"classifier.{index}", x, 4096))
    b.linear("classifier.6", x, CLASSES)


def _flat(b: Builder, x: str) -> str:
    """[batch, all the rest], the elements where they lay."""
    batch, channels, height, width = b.tensors[x].shape
    op = Vector(kind="copy", rows=batch, channels=channels * height * width)
    return b.add("flatten", op, (x,), (batch, channels * height * width))
