"""BVLC GoogLeNet (Szegedy 2015, as trained with Caffe in 2014): a classic with local response normalisation.

It is not torchvision's `googlenet`: no BatchNorm, two LRN layers, a real 5 x 5 convolution in the third
branch. The names of its parameters are those of the weights that `lrp.models.load("bvlc_googlenet")` reads.
"""

import torch
from torch import nn


def _conv(before, width, kernel, stride=1):
    layer = nn.Sequential()
    layer.add_module("conv", nn.Conv2d(before, width, kernel, stride, padding=kernel // 2))
    layer.add_module("relu", nn.ReLU(inplace=True))
    return layer


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


class BVLCGoogLeNet(nn.Module):
    """GoogLeNet as the Berkeley Vision and Learning Center trained it in 2014: no BatchNorm, two LRN layers.

    Input (N, 3, 224, 224), normalised by `lrp.models.normalizer(name)`; output (N, 1000) logits.
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

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x
