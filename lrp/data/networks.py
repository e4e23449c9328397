"""The networks that are explained: four small ones of our own for scenes, and classics as their papers have them.

Their weights are read by `lrp.data.models.load`; the names of their layers are those of the weights.
"""

from collections import OrderedDict
from numbers import Integral

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from ..network.kinds import LRN, register

# ---------------------------------------------------------------- small networks for scenes


class SceneVGG(nn.Module):
    """VGG-11 in miniature (Simonyan 2015): 3 x 3 convolutions, max pools, two dense layers, no BatchNorm.

    Input (N, 3, 64, 64), normalised by `datasets.SCENE`; output (N, 10) logits. Layer names as in
    torchvision; "M" is a pool, "L" a local response normalisation with Caffe's constants.
    """

    def __init__(self, widths=(16, "M", 32, "M", 48, 48, "M", 64, 64, "M"), hidden=96, classes=10, side=64, drop=0.25):
        super().__init__()
        layers, before = [], 3
        for width in widths:
            if width == "M":
                layers += [nn.MaxPool2d(2)]
            elif width == "L":
                layers += [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)]
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
        side //= 2 ** widths.count("M")
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(before * side * side, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(drop),
            nn.Linear(hidden, classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


def _stage(blocks, before, width, stride, shortcut):
    """torchvision's BasicBlocks in a row; the first has the stride, and this shortcut in the place of the identity."""
    first = BasicBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


class SceneResNet(ResNet):
    """torchvision's ResNet-18 with narrow stages: eight of its BasicBlocks, put together as it does.

    Input (N, 3, 64, 64), normalised by `datasets.SCENE`; output (N, 10) logits. For the small pictures
    conv1 is 3 x 3 with stride 1.
    """

    def __init__(self, widths=(16, 24, 40, 64), classes=10):
        nn.Module.__init__(self)  # the layers are built here, `forward` is torchvision's
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for number, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False), start=1):
            stride, shortcut = 1 if number == 1 else 2, None
            if stride > 1:
                shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            self.add_module(f"layer{number}", _stage(2, before, width, stride, shortcut))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)


class SceneLRN(SceneVGG):
    """A small VGG of the age of LRN (Krizhevsky 2012): after two of its pools, channels are normalised.

    Input (N, 3, 32, 32), 0..255 minus the middle (`datasets.SCENE_255`), so that activations are large enough
    for LRN to act, as in Caffe; output (N, 10) logits.
    """

    def __init__(self):
        super().__init__((24, 24, "M", "L", 48, "M", "L", 64, 64, "M"), side=32, drop=0.1)


class SceneViT(VisionTransformer):
    """torchvision's Vision Transformer in miniature (Dosovitskiy 2021): a class token and 4 x 4 others, three blocks.

    Input (N, 3, 64, 64), normalised by `datasets.SCENE`; output (N, 10) logits. The tokens come from a stem of
    convolutions with BatchNorm (Xiao 2021), one every 16 pixels.
    """

    def __init__(
        self, stem=((16, 2), (32, 1), (32, 2), (64, 1), (64, 2), (64, 2)), layers=3, heads=4, width=64, classes=10
    ):
        convolutions = [ConvStemConfig(channels, 3, stride) for channels, stride in stem]
        super().__init__(64, 16, layers, heads, width, 2 * width, num_classes=classes, conv_stem_configs=convolutions)
        nn.init.normal_(self.encoder.pos_embedding, std=0.5)  # nearly the tokens' own: places count from the start
        with torch.no_grad():
            for block in self.encoder.layers:  # queries and keys of twice the size: attention that begins uneven
                block.self_attention.in_proj_weight[: 2 * width] *= 2


# ---------------------------------------------------------------- GoogLeNet, 2014


def _conv(before, width, kernel, stride=1):
    conv = nn.Conv2d(before, width, kernel, stride, padding=kernel // 2)
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(inplace=True)))


def _pool(stride=2, padding=0):
    return nn.MaxPool2d(3, stride, padding, ceil_mode=True)


class Inception(nn.Module):
    """Four branches side by side: 1 x 1, 3 x 3, 5 x 5 and pooled; (N, C, H, W) -> (N, sum of four, H, W)."""

    def __init__(self, before, one, three_in, three, five_in, five, pooled):
        super().__init__()
        self.branch1 = _conv(before, one, 1)
        self.branch2 = nn.Sequential(_conv(before, three_in, 1), _conv(three_in, three, 3))
        self.branch3 = nn.Sequential(_conv(before, five_in, 1), _conv(five_in, five, 5))
        self.branch4 = nn.Sequential(_pool(1, 1), _conv(before, pooled, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


_INCEPTIONS = {  # channels of the 1 x 1 branch; into and out of 3 x 3; into and out of 5 x 5; after pooling
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class BVLCGoogLeNet(nn.Sequential):
    """GoogLeNet as the Berkeley Vision and Learning Center trained it in 2014: no BatchNorm, two LRN layers.

    It is not torchvision's `googlenet`: a real 5 x 5 convolution stands in the third branch (Szegedy 2015).
    Input (N, 3, 224, 224), normalised by `lrp.data.models.normalizer(name)`; output (N, 1000) logits.
    """

    def __init__(self, classes=1000):
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.pool1 = _pool()
        self.lrn1 = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        self.conv2 = _conv(64, 64, 1)
        self.conv3 = _conv(64, 192, 3)
        self.lrn2 = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        self.pool2 = _pool()
        before = 192
        for block, widths in _INCEPTIONS.items():
            if block in ("4a", "5a"):
                self.add_module(f"pool{int(block[0]) - 1}", _pool())
            self.add_module(f"inception{block}", Inception(before, *widths))
            before = widths[0] + widths[2] + widths[4] + widths[5]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(before, classes)


# ---------------------------------------------------------------- Caffe's network for CIFAR-10, 2014


class WithinChannelLRN(nn.Module):
    r"""Divide each value by a power of the mean square around it: Caffe's LRN with `norm_region: WITHIN_CHANNEL`.

    .. math:: y = x \Big(k + \frac{\alpha}{n^2} \sum_{n \times n} x^2\Big)^{-\beta}

    The sum runs over the n x n window around the value, in its own channel; outside the picture x is 0, and the
    divisor is n² at the edges too. `size` is n. Where n is even, the window reaches one step further up and left
    than down and right (n // 2 before, (n - 1) // 2 after), as `nn.LocalResponseNorm` does with channels.
    Input and output (N, C, H, W) or (C, H, W), of any floating type.

    Raises ValueError unless size is a positive integer, alpha >= 0 and k > 0.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        super().__init__()
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"size must be a positive integer, the side of the window; got {size!r}")
        if not alpha >= 0 or not k > 0:
            raise ValueError(f"alpha must be at least 0 and k above 0, so that the base is; got {alpha=}, {k=}")
        self.size, self.alpha, self.beta, self.k = int(size), alpha, beta, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x, (N, C, H, W) or (C, H, W)."""
        before, after = self.size // 2, (self.size - 1) // 2
        square = (self.alpha**0.5 * x).square()  # alpha goes in first: in float16, 256² is infinite
        square = F.pad(square, (before, after, before, after))
        return x * (self.k + F.avg_pool2d(square, self.size, stride=1)).pow(-self.beta)

    def extra_repr(self) -> str:
        """The arguments, as `nn.LocalResponseNorm` prints them."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


register(WithinChannelLRN, LRN)


def _lrn():
    return WithinChannelLRN(3, alpha=5e-5, beta=0.75)


class CaffeCIFAR10Full(nn.Sequential):
    """Caffe's "full" network for CIFAR-10 (Jia 2014): three convolutions, overlapping pools, one dense layer.

    Input (N, 3, 32, 32), normalised by `lrp.data.models.normalizer("caffe_cifar10_full")`; output (N, 10) logits.
    """

    def __init__(self, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu1 = nn.ReLU(inplace=True)
        self.norm1 = _lrn()
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.norm2 = _lrn()
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.relu3 = nn.ReLU(inplace=True)
        self.pool3 = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.flatten = nn.Flatten()
        self.ip1 = nn.Linear(64 * 4 * 4, classes)


# ---------------------------------------------------------------- ResNets for CIFAR-10


class PaddedShortcut(nn.Module):
    """Option A: every second row and column, and channels of zeros before and behind: (N, C, H, W) -> (N, D, H/2, W/2).

    The third kind of skip beside the identity and the projection: half of its channels are constants.
    """

    def __init__(self, before: int, width: int):
        super().__init__()
        self.channels = (width - before) // 2, width - before - (width - before) // 2

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.channels))


class CIFARResNet(nn.Module):
    """ResNet-20 (n = 3) or ResNet-32 (n = 5) for CIFAR-10 (He 2016): three stages, 16, 32 and 64 channels wide.

    Input (N, 3, 32, 32), normalised by `datasets.IMAGENET`; output (N, 10) logits.
    """

    def __init__(self, n: int = 3, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        for number, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            stride, shortcut = (1, None) if width == before else (2, PaddedShortcut(before, width))
            self.add_module(f"layer{number}", _stage(n, before, width, stride, shortcut))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))
