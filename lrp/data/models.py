"""Networks to explain, always trained: three small ones of our own, Caffe's, CIFAR's ResNets, torchvision's.

`load(name)` gives a network in eval mode, `normalizer(name)` what its input must go through, `side(name)` how
large that is, `report` how good the network is: look at that before explaining anything. Our own networks know
the digit in a scene of `lrp.data.datasets` and are committed.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torchvision
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

from ..errors import DataError
from .datasets import CAFFE, CIFAR10_CLASSES, DATA, IMAGENET, SCENE, SCENE_255, Normalizer, find, imagenet_classes
from .networks import BVLCGoogLeNet, CaffeCIFAR10Full, CIFARResNet, SceneLRN, SceneResNet, SceneVGG

CHECKPOINTS = DATA / "checkpoints"


SCENE_NETWORKS = {"scene_vgg": SceneVGG, "scene_resnet": SceneResNet, "scene_lrn": SceneLRN}


def untrained(name, seed=0):
    """A scene network with fresh weights (He 2015) that depend on the seed alone: the start of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = SCENE_NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


# ---------------------------------------------------------------- loading

_CLASSICS = {
    "bvlc_googlenet": BVLCGoogLeNet,
    "bvlc_googlenet_rgb": BVLCGoogLeNet,
    "caffe_cifar10_full": CaffeCIFAR10Full,
    "cifar_resnet20": partial(CIFARResNet, 3),
    "cifar_resnet32": partial(CIFARResNet, 5),
}
CIFAR = ("caffe_cifar10_full", "cifar_resnet20", "cifar_resnet32")  # networks that know the classes of CIFAR-10
_FOUND = {  # weights in other people's archives, under LRP_DATA
    "squeezenet1_1": ("weights/imagenet/squeezenet1_1_tvnorm.pth",),
    "mobilenet_v2": ("weights/imagenet/mobilenet_v2_coral_tvnorm.pth",),
    "bvlc_googlenet": ("weights/imagenet/bvlc_googlenet_caffe.pth",),
    "bvlc_googlenet_rgb": (
        "weights/imagenet/bvlc_googlenet_caffe.pth",
        "weights/imagenet/bvlc_googlenet_conv1_tvnorm_overlay.pth",
    ),
    "caffe_cifar10_full": ("weights/cifar10/caffe_cifar10_full_70000.pth",),
    "cifar_resnet20": ("weights/cifar10/resnet20-12fca82f.th",),
    "cifar_resnet32": ("weights/cifar10/resnet32-d509ac18.th",),
}
_FIX = "set LRP_DATA to the folder that has it: see data/README.md"


def normalizer(name):
    """The `datasets.Normalizer` that a network's input goes through.

    That of `caffe_cifar10_full` subtracts a mean image from LRP_DATA; raises DataError where it is missing.
    """
    if name == "caffe_cifar10_full":  # 0..255 minus the mean image
        mean = np.load(find("weights/cifar10/cifar10_train_mean_hwc_rgb.npy", fix=_FIX))
        return Normalizer(torch.from_numpy(mean).permute(2, 0, 1) / 255, (1 / 255,) * 3)
    if name in torchvision.models.list_models(module=torchvision.models):
        usual = torchvision_weights(name).transforms()  # nearly all IMAGENET; EfficientNetV2-L has its own
        return Normalizer(tuple(usual.mean), tuple(usual.std))
    others = {"scene_lrn": SCENE_255, "bvlc_googlenet": CAFFE}
    return others.get(name, SCENE if name in SCENE_NETWORKS else IMAGENET)


def side(name):
    """How many pixels high and wide the images are that a network is tested on."""
    if name in torchvision.models.list_models(module=torchvision.models):
        return torchvision_weights(name).transforms().crop_size[0]
    return 32 if name in ("scene_lrn", *CIFAR) else 64 if name in SCENE_NETWORKS else 224


def load(name, device="cpu", dtype=None):
    """A trained network in eval mode: `scene_vgg`, `scene_resnet`, `scene_lrn`, `bvlc_googlenet`,
    `caffe_cifar10_full`, `cifar_resnet20`, `cifar_resnet32`, or a classifier of torchvision.

    `bvlc_googlenet` takes Caffe's input (BGR), `bvlc_googlenet_rgb` the usual one of torchvision: see
    `normalizer`. Raises DataError naming the file and the way to get it.
    """
    with torch.random.fork_rng(devices=[]):  # building draws random numbers: the user's stay as they were
        model, state = _scene_network(name) if name in SCENE_NETWORKS else _pretrained(name)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"the weights found for {name} belong to another network: {error}") from None
    for auxiliary in ("aux1", "aux2", "AuxLogits"):  # heads that only training uses
        if getattr(model, auxiliary, None) is not None:
            setattr(model, auxiliary, None)
            model.aux_logits = False
    return model.eval().to(device=device, dtype=dtype)


def _scene_network(name):
    path, entry = CHECKPOINTS / f"{name}.safetensors", index().get(name)
    if entry is None or not path.exists():
        raise DataError(f"no checkpoint of {name} in {CHECKPOINTS}: run `make train`")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(
            f"{path} is not the file that {CHECKPOINTS / 'index.json'} describes: restore both from git, "
            "or run `make train`"
        )
    return SCENE_NETWORKS[name](), safetensors.torch.load(data)


def _pretrained(name):
    if name in _CLASSICS:
        model = _CLASSICS[name]()
    elif name in torchvision.models.list_models(module=torchvision.models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        options |= {"transform_input": True} if options else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    else:
        raise DataError(
            f"no network is called {name!r}: there are {', '.join([*SCENE_NETWORKS, *_FOUND])} "
            "and the classifiers of torchvision.models"
        )
    state = {}
    for path in _weights(name):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            state |= {key.removeprefix("module."): value for key, value in found.get("state_dict", found).items()}
        except Exception as error:  # a cut or foreign file fails in many ways
            raise DataError(
                f"{path} cannot be read as weights of {name} ({type(error).__name__}): "
                f"delete it and run `python -m lrp.data.downloads {name}`"
            ) from error
    return model, state


def _weights(name):
    try:
        return [find(path, fix=_FIX) for path in _FOUND[name]]
    except (KeyError, DataError):
        if name in _CLASSICS:
            raise
    file = Path(torchvision_weights(name).url).name
    return [find(f"weights/{file}", fix=f"run `python -m lrp.data.downloads {name}`")]


def torchvision_weights(name):
    """torchvision's description of a classifier's original ImageNet weights: `.url`, `.meta`."""
    choices = torchvision.models.get_model_weights(name)
    return getattr(choices, "IMAGENET1K_V1", None) or choices.DEFAULT


def index():
    """What `make train` wrote about each committed checkpoint: sha256, accuracy, seed, epochs, parameters."""
    path = CHECKPOINTS / "index.json"
    return json.loads(path.read_text()) if path.exists() else {}


# ---------------------------------------------------------------- how good is it?


@torch.no_grad()
def report(model, inputs, labels, name="model", batch=250):
    """How good a network is on inputs (N, ...) with labels (N,): a table with one row.

    Columns: n; accuracy; low and high, the ends of its 95 % interval (Wilson 1927); confidence, the mean
    probability of the predicted class. The model runs in eval mode, on its own device and dtype, and is left
    as it was.
    """
    like, modes = next(model.parameters()), [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = torch.cat([model(part.to(like)).cpu() for part in inputs.split(batch)])
    finally:
        for module, training in modes:
            module.training = training
    confidence, predicted = F.softmax(logits.double(), 1).max(1)
    hits = (predicted == labels.cpu()).sum().item()
    low, high = wilson(hits, len(labels))
    return pd.DataFrame(
        {
            "n": len(labels),
            "accuracy": hits / len(labels),
            "low": low,
            "high": high,
            "confidence": confidence.mean().item(),
        },
        index=[name],
    )


def wilson(hits, n):
    """The 95 % interval of a proportion (Wilson 1927), as (low, high)."""
    low, high = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def found(names, device="cpu"):
    """(name, network) for those networks whose weights are here; for others, prints the fix."""
    for name in names:
        try:
            yield name, load(name, device)
        except DataError as error:
            print(f"skipped {name}: {error}")


def class_name(name, logits):
    """What a network's first output (N, K) says in words: a digit, or a class of CIFAR-10 or ImageNet."""
    k = int(logits[0].argmax())
    if name in SCENE_NETWORKS:
        return str(k)
    return (CIFAR10_CLASSES if name in CIFAR else imagenet_classes())[k]
