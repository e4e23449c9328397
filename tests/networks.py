"""Small networks for the tests, made from their parts."""

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


class Net(nn.Module):
    """A model from its parts and its forward: Net(lambda m, x: m.a(x), a=nn.Linear(2, 2))."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.call(self, x)


def sound(model):
    """The model in float64 and eval mode, its norms with statistics and scales of both signs."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.5), m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight), nn.init.normal_(m.bias, 0, 0.3)
        if isinstance(m, FrozenBatchNorm2d):
            m.running_mean.normal_(), m.running_var.uniform_(0.5, 2), m.weight.normal_(), m.bias.normal_()
    return model.double().eval()
