"""Caffe's "full" network for CIFAR-10 (Jia 2014): three convolutions and two layers of LRN within channels.

The names of its layers are those of Caffe's, and of the weights that `lrp.models.load("caffe_cifar10_full")`
reads.
"""

import torch
from torch import nn

from .lrn import WithinChannelLRN


def _lrn():
    return WithinChannelLRN(3, alpha=5e-5, beta=0.75)


class CaffeCIFAR10Full(nn.Module):
    """CIFAR10_full: 5 x 5 convolutions, overlapping pools (one max, two average), one dense layer.

    Input (N, 3, 32, 32), normalised by `lrp.models.normalizer("caffe_cifar10_full")`; output (N, 10) logits.
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
        self.ip1 = nn.Linear(64 * 4 * 4, classes)

    def forward(self, x):
        x = self.norm1(self.relu1(self.pool1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        x = self.pool3(self.relu3(self.conv3(x)))
        return self.ip1(torch.flatten(x, 1))
