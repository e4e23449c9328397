"""ResNets for CIFAR-10 as their paper has them (He 2016): 6n + 2 layers, shortcuts without parameters.

The names of layers are those of the weights that `lrp.models.load("cifar_resnet20")` and `"cifar_resnet32"` read.
"""

import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock


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
    """ResNet-20 (n = 3) or ResNet-32 (n = 5): three stages of n basic blocks, 16, 32 and 64 channels wide.

    Input (N, 3, 32, 32), normalised by `datasets.IMAGENET`; output (N, 10) logits.
    """

    def __init__(self, n: int = 3, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        for number, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            stride, shortcut = (1, None) if width == before else (2, PaddedShortcut(before, width))
            blocks = [BasicBlock(before, width, stride, shortcut), *(BasicBlock(width, width) for _ in range(n - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))
