"""Small networks for the tests, made from their parts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lrp import composites, rules


class Net(nn.Module):
    """A model from its parts and its forward: Net(lambda m, x: m.a(x), a=nn.Linear(2, 2)). Tensors become buffers."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            plain = isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter)
            (self.register_buffer if plain else self.__setattr__)(name, part)

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


class Small(nn.Module):
    """Stem with pool, residual block, depthwise block with a gate, concatenation, head: what torchvision is made of."""

    def __init__(self, bias=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.depth, self.depth_norm = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=bias), nn.BatchNorm2d(6)
        self.gate = nn.Conv2d(6, 6, 1)
        self.pre_norm, self.grow = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=bias)
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(10, 5, bias=bias))

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = self.relu(x + self.norm(self.conv(x)))
        y = F.relu6(self.depth_norm(self.depth(x)))
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        x = torch.cat([x, self.grow(F.relu(self.pre_norm(y)))], 1)
        return self.head(x.mean((2, 3)))


def small(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    model = Small(**options).to(dtype).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3), m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight, 1, 0.5), nn.init.normal_(m.bias, 0, 0.3)
    return model, torch.randn(3, 3, 8, 8).to(dtype)


PRESETS = {
    "epsilon": composites.Epsilon,
    "plus": composites.EpsilonPlus,
    "plus flat": composites.EpsilonPlusFlat,
    "gamma box": lambda **o: composites.EpsilonGammaBox(-5.0, 5.0, **o),
    "a2b1": composites.EpsilonAlpha2Beta1,
    "a2b1 flat": composites.EpsilonAlpha2Beta1Flat,
    "w2": lambda **o: composites.Composite([("first", rules.WSquare()), ("any", rules.Ratio())], **o),
    "signed": lambda **o: composites.Epsilon(addition=rules.Epsilon(), **o),
    "unfolded": lambda **o: composites.EpsilonPlus(fold_batchnorm=False, addition=rules.Flat(), **o),
}


def state(model):
    """All that could be changed about a model: attributes, tensors, flags and hooks of every module."""
    facts = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            value = {k: id(v) for k, v in value.items()} if isinstance(value, dict) else repr(value)
            facts.append((name, key, value))
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        facts.append((name, id(t), t._version, t.requires_grad, t.grad is None, t.detach().numpy().tobytes()))
    return facts, list(model.state_dict()), model.__class__, torch.get_rng_state().tolist()


@torch.no_grad()
def scatter(model: nn.Module) -> None:
    """Biases, scales and gains that count: random biases, scales about 1, gains near zero at 0.3 to 0.7."""
    norms = {id(m.weight) for m in model.modules() if _is_norm(m) and m.weight is not None}
    for name, p in model.named_parameters():
        if not p.is_floating_point() or isinstance(p, nn.parameter.UninitializedParameter):
            continue
        if p.dim() == 1 and "bias" in name.rpartition(".")[2]:
            p.normal_(0, 0.1)
        elif id(p) in norms:
            p.uniform_(0.5, 1.5)
        elif p.numel() and float(p.abs().max()) < 1e-2:  # a gain, or a table that starts empty
            p.uniform_(0.3, 0.7) if p.numel() == max(p.shape, default=1) else p.normal_(0, 0.02)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter)


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Every BatchNorm gets the statistics of this batch."""
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    if norms:
        model(x)
    for m, momentum in zip(norms, before, strict=True):
        m.momentum = momentum
        m.eval()
