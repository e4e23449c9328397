"""Networks to explain, always trained: four small ones of our own, Caffe's, CIFAR's ResNets, torchvision's.

`load(name)` gives a network in eval mode, `normalizer(name)` what its input must go through, `side(name)` how
large that is, `report` how good the network is: look at that before explaining anything. Our own networks know
the digit in a scene of `lrp.data.datasets` and are committed.
"""

import argparse
import hashlib
import json
import textwrap
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torchvision
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

from .. import checks
from ..errors import DataError
from .datasets import CAFFE, CIFAR10_CLASSES, DATA, IMAGENET, SCENE, SCENE_255, Normalizer, find, imagenet_classes
from .networks import BVLCGoogLeNet, CaffeCIFAR10Full, CIFARResNet, SceneLRN, SceneResNet, SceneVGG, SceneViT

CHECKPOINTS = DATA / "checkpoints"
SCENE_NETWORKS = {"scene_vgg": SceneVGG, "scene_resnet": SceneResNet, "scene_lrn": SceneLRN, "scene_vit": SceneViT}


# what training programs put beside a state dict, and what holds no code
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    np._core.multiarray.scalar,
    *{type(np.dtype(c)) for c in np.typecodes["All"]},
]


def untrained(name, seed=0):
    """A scene network with fresh weights, torchvision's or He's (2015), by the seed alone: the start of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = SCENE_NETWORKS[name]()
    for module in () if isinstance(model, SceneViT) else model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


# ---------------------------------------------------------------- what is known by name

CIFAR = ("caffe_cifar10_full", "cifar_resnet20", "cifar_resnet32")  # networks that know the classes of CIFAR-10
BUILT = SCENE_NETWORKS | {  # networks that are built here, and not by torchvision
    "bvlc_googlenet": BVLCGoogLeNet,
    "bvlc_googlenet_rgb": BVLCGoogLeNet,
    "caffe_cifar10_full": CaffeCIFAR10Full,
    "cifar_resnet20": partial(CIFARResNet, 3),
    "cifar_resnet32": partial(CIFARResNet, 5),
}
_FOUND = {  # weights in public archives, below `weights` under LRP_DATA
    "squeezenet1_1": ["imagenet/squeezenet1_1_tvnorm.pth"],
    "mobilenet_v2": ["imagenet/mobilenet_v2_coral_tvnorm.pth"],
    "bvlc_googlenet": ["imagenet/bvlc_googlenet_caffe.pth"],
    "bvlc_googlenet_rgb": ["imagenet/bvlc_googlenet_caffe.pth", "imagenet/bvlc_googlenet_conv1_tvnorm_overlay.pth"],
    "caffe_cifar10_full": ["cifar10/caffe_cifar10_full_70000.pth"],
    "cifar_resnet20": ["cifar10/resnet20-12fca82f.th"],
    "cifar_resnet32": ["cifar10/resnet32-d509ac18.th"],
}
_FIX = "set LRP_DATA to the folder that has it: see data/README.md"


@cache
def classifiers():
    """torchvision's classifiers, by name."""
    return torchvision.models.list_models(module=torchvision.models)


def torchvision_weights(name):
    """torchvision's description of a classifier's original ImageNet weights: `.url`, `.meta`."""
    choices = torchvision.models.get_model_weights(name)
    return getattr(choices, "IMAGENET1K_V1", None) or choices.DEFAULT


def normalizer(name):
    """The `datasets.Normalizer` that a network's input goes through.

    That of `caffe_cifar10_full` subtracts a mean image from LRP_DATA; raises DataError where it is missing.
    """
    if name == "caffe_cifar10_full":  # 0..255 minus the mean image
        mean = np.load(find("weights/cifar10/cifar10_train_mean_hwc_rgb.npy", fix=_FIX))
        return Normalizer(torch.from_numpy(mean).permute(2, 0, 1) / 255, (1 / 255,) * 3)
    if name in classifiers():
        usual = torchvision_weights(name).transforms()  # nearly all IMAGENET; EfficientNetV2-L has its own
        return Normalizer(tuple(usual.mean), tuple(usual.std))
    others = {"scene_lrn": SCENE_255, "bvlc_googlenet": CAFFE}
    return others.get(name, SCENE if name in SCENE_NETWORKS else IMAGENET)


def side(name):
    """How many pixels high and wide the images are that a network is tested on."""
    if name in classifiers():
        return torchvision_weights(name).transforms().crop_size[0]
    return 32 if name in ("scene_lrn", *CIFAR) else 64 if name in SCENE_NETWORKS else 224


def class_names(name, count):
    """What the outputs of a network stand for: digits, classes of CIFAR-10 or of ImageNet, else "class 0" and so on."""
    known = ()
    if name in SCENE_NETWORKS:
        known = [str(k) for k in range(10)]
    elif name in BUILT or name in classifiers():
        known = CIFAR10_CLASSES if name in CIFAR else imagenet_classes()
    return list(known) if len(known) == count else [f"class {k}" for k in range(count)]


def class_name(name, logits):
    """What a network's first output (N, K) says in words: a digit, or a class of CIFAR-10 or ImageNet."""
    return class_names(name, logits.shape[1])[int(logits[0].argmax())]


# ---------------------------------------------------------------- loading


def load(name, device="cpu", dtype=None):
    """A trained network in eval mode: `scene_vgg`, `scene_resnet`, `scene_lrn`, `scene_vit`,
    `bvlc_googlenet`, `caffe_cifar10_full`, `cifar_resnet20`, `cifar_resnet32`, or a classifier of torchvision.

    `bvlc_googlenet` takes Caffe's input (BGR), `bvlc_googlenet_rgb` the usual one of torchvision: see
    `normalizer`. Raises DataError naming the file and the way to get it.
    """
    if name not in BUILT and name not in classifiers():
        raise DataError(
            f"no network is called {name!r}: there are {', '.join([*SCENE_NETWORKS, *_FOUND])} "
            "and the classifiers of torchvision.models"
        )
    if name in SCENE_NETWORKS:
        state = _checkpoint(name)
    else:
        fix, state = f"delete it and run `python -m lrp.data.downloads {name}`", {}
        for path in _weights(name):
            state |= read_state(path, fix)
    model = build(name, state, f"the weights found for {name} belong to another network")
    return model.to(device=device, dtype=dtype)


def build(name, state, complaint):
    """The network of this name with the weights in a state dict, in eval mode.

    A classifier of torchvision gets as many classes as the weights have, and no heads that only training uses.
    Raises DataError, which begins with `complaint`, for weights that do not fit.
    """
    with torch.random.fork_rng(devices=[]):  # building draws random numbers: the caller's stay as they were
        model = BUILT[name]() if name in BUILT else _classifier(name, state)
    training, state = ("aux1.", "aux2.", "AuxLogits."), _unwrapped(state, model.state_dict())
    return fill(model, {key: value for key, value in state.items() if not key.startswith(training)}, complaint)


def _classifier(name, state):
    """torchvision's classifier of this name with fresh weights, and as many classes as the state dict has."""
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        wanted = torchvision.models.get_model(name, weights=None, **options).state_dict()
    head, state = list(wanted)[-1], _unwrapped(state, wanted)
    options |= {"transform_input": True} if options else {}
    classes = len(state[head]) if head in state and state[head].dim() else 1000
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def fill(model, state, complaint):
    """The model with these weights, in eval mode; DataError, which begins with `complaint`, where they do not fit.

    Wrappers around the model or around the one that was saved do not matter.
    """
    network = checks.inner(model)
    try:
        network.load_state_dict(_unwrapped(state, network.state_dict()))
    except RuntimeError as error:
        problem = textwrap.shorten(str(error).partition(":\n")[2] or str(error), 240)
        raise DataError(f"{complaint}: {problem}") from None
    return model.eval()


def _unwrapped(state, wanted):
    """The weights under the names that are wanted, if a wrapper has put its own before all of them.

    (`module` is DataParallel's and AveragedModel's, `_orig_mod` torch.compile's, `model` Lightning's and many others'.)
    """
    state = {key: value for key, value in state.items() if key != "n_averaged" or key in wanted}
    state = {key if key in wanted else key.replace("_orig_mod.", ""): value for key, value in state.items()}
    for prefix in ("module.", "model.", "module."):
        if state and all(key.startswith(prefix) for key in state) and not state.keys() & wanted.keys():
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _checkpoint(name):
    """The state dict of a scene network, if it is the one that the index describes."""
    path, entry = CHECKPOINTS / f"{name}.safetensors", index().get(name)
    if entry is None or not path.exists():
        raise DataError(f"no checkpoint of {name} in {CHECKPOINTS}: run `make train`")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(
            f"{path} is not the file that {CHECKPOINTS / 'index.json'} describes: restore both from git, "
            "or run `make train`"
        )
    return safetensors.torch.load(data)


def _weights(name):
    """The files with the weights of a network: those of an archive where they are, else torchvision's."""
    try:
        return [find(f"weights/{path}", fix=_FIX) for path in _FOUND[name]]
    except (KeyError, DataError):
        if name in BUILT:
            raise
    file = Path(torchvision_weights(name).url).name
    return [find(f"weights/{file}", fix=f"run `python -m lrp.data.downloads {name}`")]


def read_state(path, fix):
    """The state dict in a .safetensors file, or in one that torch.save wrote; no code in it is ever run.

    It may lie under `state_dict`, `model_state_dict` or `model`, beside options of argparse and numbers of NumPy.
    Raises DataError for a file that is missing or holds no state dict; where it cannot be read, `fix` ends the message.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there are no weights at {path}: is the path right?")
    try:
        if path.suffix == ".safetensors":
            found = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_HARMLESS):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut or foreign file fails in many ways
        raise DataError(f"{path} cannot be read as weights ({type(error).__name__}): {fix}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise DataError(f"{path} holds no state dict: write one by torch.save(model.state_dict(), path)")
    return dict(found)


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


def calibrated(name: str, x: torch.Tensor) -> nn.Module:
    """torchvision's classifier with random weights, its BatchNorms calibrated on x: sane activations, no denormals."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).to(x.device)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
        with torch.no_grad():
            model.train()(x)
    return model.eval()
