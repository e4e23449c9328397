"""Pictures with a known answer, and pictures of the world: what the notebooks explain.

`scenes` puts real digits on real textures, with exact boxes and masks (see `lrp/scenes.py`). `photographs`
gives those that ship inside scikit-image and scikit-learn. `imagenet_val` reads ImageNet where you have it.
Every image is RGB in [0, 1]; a `Normalizer` turns it into the input of a network.
"""

import csv
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .errors import DataError
from .scenes import VERSION, Scenes, scenes  # noqa: F401 (part of what this module offers)

DATA = Path(__file__).resolve().parents[1] / "data"


# ---------------------------------------------------------------- what networks see


@dataclass(frozen=True)
class Normalizer:
    """Map RGB images in [0, 1] to a network's input: (image - mean) / std per channel, channels in `order`.

    Images and inputs are (N, 3, H, W) or (3, H, W); `mean` and `std` are given in the order of the *input's*
    channels.
    """

    mean: tuple
    std: tuple
    order: tuple = (0, 1, 2)

    def __call__(self, images):
        mean, std = self._columns(images)
        return (images[..., self.order, :, :] - mean) / std

    def inverse(self, inputs):
        """Images of these inputs: what `__call__` undoes."""
        mean, std = self._columns(inputs)
        back = tuple(self.order.index(channel) for channel in range(3))
        return (inputs * std + mean)[..., back, :, :]

    def bounds(self, like=None):
        """Lowest and highest possible input, each (1, 3, 1, 1): the box of the z^B rule (Montavon 2017)."""
        like = torch.zeros(()) if like is None else like
        mean, std = self._columns(like)
        return ((0 - mean) / std)[None], ((1 - mean) / std)[None]

    def _columns(self, like):
        return (
            torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
            for values in (self.mean, self.std)
        )


MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SCENE = Normalizer(MEAN, STD)
IMAGENET = Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# BGR, 0..255, minus the mean of ImageNet
CAFFE = Normalizer((104 / 255, 117 / 255, 123 / 255), (1 / 255,) * 3, order=(2, 1, 0))
normalize, denormalize, bounds = SCENE, SCENE.inverse, SCENE.bounds


# ---------------------------------------------------------------- photographs

_PHOTOGRAPHS = {  # what ships inside the wheels of scikit-image and scikit-learn: nothing is downloaded
    "astronaut": "astronaut",
    "camera": "camera",
    "cat": "chelsea",
    "coffee": "coffee",
    "rocket": "rocket",
    "china": "china.jpg",
    "flower": "flower.jpg",
}


def photographs(names=None, size=224):
    """Photographs by name, each (3, size, size) float32 RGB in [0, 1]: the central square, resized with
    antialiasing.

    Without `names`, all there are. Raises DataError for a name that is not among them.
    """
    names = [names] if isinstance(names, str) else list(_PHOTOGRAPHS if names is None else names)
    if unknown := [name for name in names if name not in _PHOTOGRAPHS]:
        raise DataError(f"no photograph is called {', '.join(unknown)}: there are {', '.join(_PHOTOGRAPHS)}")
    return {name: _square(Image.fromarray(_photograph(_PHOTOGRAPHS[name])).convert("RGB"), size) for name in names}


def _photograph(source):
    if source.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(source)
    from skimage import data

    return getattr(data, source)()


def _square(image, size):
    """The central square of a picture, (3, size, size) in [0, 1]."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# ---------------------------------------------------------------- ImageNet, where you have it


@dataclass(frozen=True)
class Photos:
    """N labelled photographs: images (N, 3, S, S) in [0, 1], labels (N,) long, N boxes (K, 4) in pixels."""

    images: torch.Tensor
    labels: torch.Tensor
    boxes: list
    names: list

    def __len__(self):
        return len(self.images)


def imagenet_val(root=None, n=None, size=224):
    """The first `n` of ILSVRC2012's validation images that are there (Russakovsky 2015), cut as torchvision
    does for testing.

    `root` holds `val/*.JPEG`, `LOC_val_solution.csv` and `LOC_synset_mapping.txt`; by default the folder
    `imagenet` that `find` sees. The shorter side becomes size * 256 / 224, then the centre is cut; boxes of
    the labelled class go with it, x0 y0 x1 y1. Raises DataError when files are missing.
    """
    root = (
        Path(root) if root else find("imagenet", fix="set LRP_DATA to a folder with ImageNet's validation images in it")
    )
    for file in ("LOC_val_solution.csv", "LOC_synset_mapping.txt", "val"):
        if not (root / file).exists():
            raise DataError(f"{root / file} is missing: it comes with ImageNet's localisation challenge (kaggle.com)")
    classes = sorted(line.split()[0] for line in (root / "LOC_synset_mapping.txt").read_text().splitlines())
    with open(root / "LOC_val_solution.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (root / "val" / f"{row['ImageId']}.JPEG").exists()][:n]
    if not rows:
        raise DataError(f"no image of {root / 'LOC_val_solution.csv'} lies in {root / 'val'}: unpack the images there")
    images, labels, boxes = [], [], []
    for row in tqdm(rows, desc="ImageNet", leave=False, disable=len(rows) < 300):
        words = row["PredictionString"].split()
        corners = torch.tensor([[float(word) for word in words[k + 1 : k + 5]] for k in range(0, len(words), 5)])
        with Image.open(root / "val" / f"{row['ImageId']}.JPEG") as image:
            pixels, inside = _center(image.convert("RGB"), corners, size)
        images.append(pixels)
        labels.append(classes.index(words[0]))
        boxes.append(inside)
    return Photos(torch.stack(images), torch.tensor(labels), boxes, [row["ImageId"] for row in rows])


def _center(image, corners, size):
    """The picture resized and cut to (3, size, size), and its boxes in the pixels of the result."""
    scale = round(size * 256 / 224) / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    corners = (corners * scale - torch.tensor([left, top, left, top])).clamp(0, size)
    seen = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, corners[seen]


@cache
def imagenet_classes():
    """The names of ImageNet's 1000 classes, in the order of torchvision's outputs."""
    from torchvision.models import SqueezeNet1_1_Weights

    return tuple(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])


# ---------------------------------------------------------------- files that are not ours


def find(relative, fix="run `make data`, or set LRP_DATA to the folder that has it"):
    """The path of a data file: under LRP_DATA, else `data/raw`, else `data`; DataError if nowhere."""
    folders = [DATA / "raw", DATA]
    if os.environ.get("LRP_DATA"):
        folders.insert(0, Path(os.environ["LRP_DATA"]))
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    raise DataError(
        f"{relative} is neither under LRP_DATA ({os.environ.get('LRP_DATA', 'not set')}) nor in {DATA}: {fix}"
    )
