"""Networks, weights and images from files and names: what `python -m lrp explain` reads before it explains.

What is wrong with a file is a DataError; what is wrong with an option is an OptionError.
"""

import difflib
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from .. import checks
from ..data import models
from ..data.normalizer import Normalizer
from ..errors import DataError, LRPError

WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # modes of PIL with 16 bits per pixel
WEIGHTS = (
    "it is to be a .safetensors file, or what torch.save(model.state_dict(), path) writes; whole models are refused, "
    "since they can hold code"
)


class OptionError(LRPError):
    """An option names what does not exist: another value of it mends that."""


# ---------------------------------------------------------------- networks


def network(name: str, weights: str | None = None, device: str = "cpu") -> nn.Module:
    """A network in eval mode: one of `lrp.data.models.load`, or `package:function`, a factory in Python code.

    `weights` is a state dict (.pth, .safetensors) to load instead of those that the name finds. Raises OptionError
    for an unknown name, DataError for weights that are missing, unreadable or do not fit.
    """
    own = _from_code(name) if ":" in name else None
    known = [*models.BUILT, *models.classifiers()]
    if own is None and name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known[:6])
        raise OptionError(f"no network is called {name!r}; near it: {near}. Your own one is package:function")
    if weights is None:
        return models.load(name, device) if own is None else own.eval().to(device)
    state, complaint = models.read_state(weights, WEIGHTS), f"the weights in {weights} do not fit {name}"
    if own is not None:
        return models.fill(own, state, complaint).to(device)
    if name in models.BUILT and name not in models.SCENE_NETWORKS:
        raise OptionError(f"{name} finds its own weights (data/README.md says where): leave out --weights")
    return models.build(name, state, complaint).to(device)


def _from_code(name: str) -> nn.Module:
    """The network that `package:function` gives, or that it is; a module in the current folder is found too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = pkgutil.resolve_name(name)
        made = made if isinstance(made, nn.Module) else made()
    except Exception as error:  # someone else's code can raise anything
        raise OptionError(
            f"{name} cannot be called ({type(error).__name__}: {error}): it is to be module:function, where "
            "`function()` gives the network and the module can be imported from here"
        ) from error
    if not isinstance(made, nn.Module) or not list(made.parameters()):
        raise OptionError(f"{name}() gives a {type(made).__name__}, not a torch.nn.Module with weights")
    checks.capturable(made)
    return made


def device(name: str) -> torch.device:
    """The device of this name; OptionError if torch does not know it or this machine does not have it."""
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise OptionError(f"--device {name} is unknown: choose cpu, cuda, cuda:1 or mps")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None


# ---------------------------------------------------------------- classes


def class_names(model: str, count: int, file: str | None = None) -> list[str]:
    """The names of a network's classes: the lines of a file, else digits, CIFAR-10's or ImageNet's, else numbers.

    Raises OptionError for a file that does not have one line per class.
    """
    if file is not None:
        try:
            names = [line.strip() for line in Path(file).read_text(encoding="utf-8").strip().splitlines()]
        except (OSError, ValueError) as error:
            raise OptionError(f"--classes {file} cannot be read: {error}") from None
        if len(names) != count:
            raise OptionError(f"--classes {file} has {len(names)} lines, {model} has {count} classes: one line each")
        return names
    return models.class_names(model, count)


def find_class(text: str, names: Sequence[str]) -> int:
    """The index of a class given by its name, in any case, or by its index; OptionError for anything else."""
    folded = [name.casefold() for name in names]
    word = text.strip().casefold()
    same = [k for k, name in enumerate(names) if name == text] or [k for k, name in enumerate(folded) if name == word]
    if len(same) > 1:
        raise OptionError(f"--target {text!r} names classes {', '.join(map(str, same))}: choose one by its index")
    if same:
        return same[0]
    if not re.fullmatch(r"[+-]?[0-9]+", word):
        close = [folded.index(name) for name in difflib.get_close_matches(word, folded, n=5)]
        within = [k for k, name in enumerate(folded) if word in name.split()]
        near = ", ".join(repr(names[k]) for k in list(dict.fromkeys([*within, *close]))[:6])
        near = near or ", ".join(map(repr, names[:3])) + ", ..."
        raise OptionError(f"--target {text!r} is the name of no class; near it: {near}")
    if not 0 <= int(word) < len(names):
        raise OptionError(f"--target {int(word)} is no class: there are 0 to {len(names) - 1}")
    return int(word)


# ---------------------------------------------------------------- images


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes input: its short side resized, the central square cut, each channel normalised."""

    resize: int
    size: int
    normalizer: Normalizer
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    @classmethod
    def of(cls, model: str, size: int | None, mean: tuple | None, std: tuple | None) -> "Preparation":
        """What torchvision does for the weights of this name; `size`, `mean` and `std` come first where given."""
        crop, normalizer = models.side(model), models.normalizer(model)
        resize, interpolation = crop, InterpolationMode.BILINEAR
        if model in models.classifiers():
            usual = models.torchvision_weights(model).transforms()
            resize, interpolation = usual.resize_size[0], usual.interpolation
        if mean is not None:
            normalizer = Normalizer(mean, std, order=tuple(range(len(mean))))
        if isinstance(normalizer.mean, Tensor) and size not in (None, crop):
            raise OptionError(f"{model} subtracts a mean image of {crop} x {crop} pixels: leave out --size")
        if size is not None:
            resize, crop = round(size * resize / crop), size
        return cls(resize, crop, normalizer, interpolation)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: (C, H, W), with one channel or three."""
        return len(self.normalizer.order), self.size, self.size

    def read(self, path: Path) -> Tensor:
        """The picture in a file as the network will see it, (C, H, W) in [0, 1]; DataError if it cannot be read."""
        image = TF.resize(read_image(path), self.resize, self.interpolation)
        image = TF.center_crop(image, self.size)
        return TF.to_tensor(image if self.shape[0] == 3 else image.convert("L"))

    def __str__(self):
        values = (self.normalizer.mean, self.normalizer.std)
        mean, std = ("an image" if isinstance(v, Tensor) else " ".join(f"{x:.3g}" for x in v) for v in values)
        return f"short side to {self.resize}, centre {self.size} x {self.size}, mean {mean}, std {std}"


def read_image(path: Path) -> Image.Image:
    """A picture as 8-bit RGB, the right way up: EXIF's rotation is applied, what is transparent becomes white.

    16 bits are scaled to 8. Raises DataError for a file that is missing, cut off or no picture.
    """
    if not Path(path).is_file():
        raise DataError("there is no such file")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
            if image.mode in WIDE:
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except Image.UnidentifiedImageError:
        raise DataError("it is no picture that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the picture cannot be read: {error}") from error
