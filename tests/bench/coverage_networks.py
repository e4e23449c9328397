"""The networks that coverage asks: by library and name, each with weights by which every branch counts, and an input.

Weights, biases and gains are random by a seed and BatchNorm's statistics are those of a batch, so that activations stay
near 1. Gains that start at or near zero (layer scale, the last BatchNorm of a block) become 0.3 to 0.7: otherwise the
blocks are not there, and conserving relevance is no merit.
"""

import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, when the bench is run as a program

from derivation import relevance as derived  # noqa: F401 (coverage compares with it)
from networks import calibrate, scatter

MEMBERS = Path(__file__).with_name("timm_members.txt")
SIZES = {"torchvision": 96, "torchvision segmentation": 64, "torchvision video": 64, "timm": 64}
OWN_SIZES = [(re.compile(pattern), size) for pattern, size in (
    (r"torchvision (vit_h_14)", 224), (r"torchvision (vit|swin|maxvit)", 224), (r"torchvision video (mvit|s3d)", 224),
    (r"timm (inception|xception|nasnet|pnasnet|legacy_xception|hrnet|selecsls)", 128),
    (r"timm (halonet|bat_resnext)", 256), (r"timm deepseek_vit", 56),
    (r"timm (legacy_senet|tresnet|dla|darknet|cspdarknet|hgnet|vgg)", 96),
)]  # fmt: skip


class Averaged(nn.Module):
    """A segmentation network as a classifier: the mean over all places of its main output."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)["out"].mean((2, 3))


def libraries() -> dict[str, list[str]]:
    """The networks by library; timm's only where it is installed."""
    models = torchvision.models
    lists = {
        "torchvision": models.list_models(module=models),
        "torchvision segmentation": models.list_models(module=models.segmentation),
        "torchvision video": models.list_models(module=models.video),
    }
    return lists | ({"timm": [name for names in members().values() for name in names]} if has_timm() else {})


def members() -> dict[str, list[str]]:
    """timm's families with the members that stand for them."""
    lines = (line.split(":") for line in MEMBERS.read_text(encoding="utf-8").splitlines())
    return {family: names.split() for family, names in lines}


def has_timm() -> bool:
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def network(library: str, name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and two inputs for it."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model, shape = _made(library, name)
        scatter(model)
        x = torch.randn(4, *shape)
        calibrate(model, x)
    return model.eval(), x[:2].clone()


def _made(library: str, name: str) -> tuple[nn.Module, tuple[int, ...]]:
    size = next((size for pattern, size in OWN_SIZES if pattern.match(f"{library} {name}")), SIZES[library])
    if library == "timm":
        return _of_timm(name, size)
    options: dict = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    if library == "torchvision segmentation":
        net = torchvision.models.get_model(name, weights_backbone=None, num_classes=5, **options)
        return Averaged(net), (3, size, size)
    if library == "torchvision video":
        frames = 16 if name.startswith(("mvit", "swin3d", "s3d")) else 8
        return torchvision.models.get_model(name, **options), (3, frames, size, size)
    return torchvision.models.get_model(name, **options), (3, size, size)


def _of_timm(name: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A member at a small size, or at its own where it has a fixed one."""
    import timm

    attempts: list[Callable] = [partial(timm.create_model, name, num_classes=10)]
    config = timm.get_pretrained_cfg(name)
    own = tuple((config.input_size if config else None) or (3, 224, 224))
    if not (config and config.fixed_input_size):
        return attempts[0](), (3, size, size)
    for smaller in (partial(attempts[0], img_size=size), attempts[0]):
        try:
            model = smaller()
            with torch.no_grad():
                shape = (3, size, size) if smaller is not attempts[0] else own
                model.eval()(torch.randn(2, *shape))
            return model, shape
        except Exception:  # it cannot be made so small
            continue
    return attempts[0](), own
