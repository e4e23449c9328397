"""Small networks for fields, and how they are trained: dense ones, linear or not, and convolutions with switches.

All map fields to one number per month, (N, 1), fitted to a continuous target; its sign is the class. Sources:
landthayen2022layer for the linear network; the convolutional one is ours (landthayen2023fact gives none).
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init
from tqdm import tqdm

from ..errors import InputError, LRPError


class LinearMLP(nn.Module):
    """Dense layers n -> 8 -> 8 -> 1 without activations, (N, ...) -> (N, 1), so one weight per input in effect.

    Glorot-uniform weights from `seed`, times `scale` in the first layer (small: less speckle from inputs that
    training never touches); biases begin at 0. Source: landthayen2022layer.
    """

    activation: type[nn.Module] = nn.Identity

    def __init__(self, n: int, hidden: tuple[int, ...] = (8, 8), bias: bool = True, seed: int = 0, scale: float = 1.0):
        super().__init__()
        sizes = (n, *hidden, 1)
        self.dense = nn.ModuleList(skip_init(nn.Linear, a, b, bias) for a, b in pairwise(sizes))
        self.between = nn.ModuleList(self.activation() for _ in hidden)
        glorot(self, seed)
        with torch.no_grad():
            self.dense[0].weight *= scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, n), or images with n pixels, -> (N, 1)."""
        x = x.flatten(1)
        for layer, activation in zip(self.dense, self.between, strict=False):
            x = activation(layer(x))
        return self.dense[-1](x)

    @torch.no_grad()
    def effective(self) -> tuple[Tensor, Tensor]:
        """The weights w (n,) and the bias b () of the one linear layer y = x w + b that this is.

        Raises LRPError for a network with activations.
        """
        if self.activation is not nn.Identity:
            raise LRPError(f"{type(self).__name__} is not linear: it has no one weight per input")
        zero = torch.zeros_like(self.dense[0].weight[:1])
        w = self.dense[-1].weight
        for layer in reversed(self.dense[:-1]):
            w = w @ layer.weight
        return w[0], self(zero)[0, 0]


class ReLUMLP(LinearMLP):
    """The same layers with ReLU between them."""

    activation = nn.ReLU


class FieldCNN(nn.Module):
    """Two blocks of convolution, ReLU and pooling, then one dense layer: (N, 1, H, W) -> (N, 1).

    The switches are what draws borders and grids into maps: `padding` "same" (zeros around) or "valid", `kernel` and
    `stride` of both convolutions, `pooling` 2 x 2 by "max", "average" or "none", and a `head` that reads every place
    ("flatten") or the mean over places ("global"). Raises LRPError for other words, an even kernel with "same", and
    fields of `shape` (H, W) too small for the layers.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        channels: tuple[int, int] = (8, 16),
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: Literal["same", "valid"] = "same",
        pooling: Literal["max", "average", "none"] = "max",
        head: Literal["flatten", "global"] = "flatten",
        seed: int = 0,
    ):
        super().__init__()
        pools = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
        for word, known in ((padding, ("same", "valid")), (pooling, (*pools, "none")), (head, ("flatten", "global"))):
            if word not in known:
                raise LRPError(f"{word!r} is not among {', '.join(known)}")
        if padding == "same" and kernel % 2 == 0:
            raise LRPError(f"padding 'same' needs an odd kernel, not {kernel}")
        blocks: list[nn.Module] = []
        for a, b in zip((1, *channels[:-1]), channels, strict=True):
            margin = kernel // 2 if padding == "same" else 0
            blocks += [skip_init(nn.Conv2d, a, b, kernel, stride, margin), nn.ReLU()]
            blocks += [pools[pooling](2)] if pooling != "none" else []
        self.features = nn.Sequential(*blocks)
        try:
            with torch.no_grad():
                places = self.features(torch.zeros(1, 1, *shape)).shape
        except RuntimeError as error:
            raise LRPError(f"fields of {tuple(shape)} are too small for these layers: {error}") from None
        self.mean = nn.AdaptiveAvgPool2d(1) if head == "global" else nn.Identity()
        self.head = skip_init(nn.Linear, places[1] if head == "global" else places[1:].numel(), 1)
        glorot(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 1)."""
        return self.head(self.mean(self.features(x)).flatten(1))


@torch.no_grad()
def glorot(net: nn.Module, seed: int) -> None:
    """Glorot-uniform weights from a seed, biases 0; torch's global random numbers stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                module.bias.zero_()


def train(
    net: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    seed: int = 0,
    lr: float = 5e-4,
    epochs: int = 30,
    weight_decay: float = 0.0,
    batch: int = 32,
) -> nn.Module:
    """Fit net(inputs) (N, 1) to targets (N,) by mean square error with Adam; returns the net, changed, in eval mode.

    `seed` orders the batches; the same net, data and seed give the same weights on one machine with one number of
    threads. `weight_decay` is L2 (it enters the gradient): it takes weights to 0 that the data does not need. Raises
    InputError for shapes that do not fit and for a loss that is not finite.

    Source: landthayen2022layer for Adam and the rate 5e-4; epochs and batch are ours.
    """
    targets = torch.as_tensor(targets).reshape(-1, 1).to(inputs)
    if len(targets) != len(inputs) or not len(inputs):
        raise InputError(f"{len(inputs)} inputs and {len(targets)} targets do not make a training set")
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr, weight_decay=weight_decay)
    net.train()
    steps = epochs * -(-len(inputs) // batch)
    with torch.enable_grad(), tqdm(total=steps, desc=type(net).__name__, leave=False, delay=1) as bar:
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs), generator=order).split(batch):
                output = net(inputs[rows])
                if output.shape != targets[rows].shape:
                    raise InputError(f"the network gives {tuple(output.shape)} for {len(rows)} inputs, not (N, 1)")
                loss = F.mse_loss(output, targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
    if not torch.isfinite(loss):
        raise InputError(f"the loss became {loss.item()}: are inputs finite, and is lr={lr} small enough?")
    return net.eval()


@torch.no_grad()
def accuracy(net, inputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose output has the sign of the target; targets of 0 belong to no class and are left out."""
    targets = torch.as_tensor(targets).reshape(-1)
    known = targets != 0
    if not known.any():
        raise InputError("no target has a sign, so there is no class to get right")
    return float((net(inputs).reshape(-1)[known].sign() == targets[known].sign()).double().mean())
