"""Pictures with a known answer, and pictures of the world: what the notebooks explain.

`scenes` puts real digits on real textures, with exact boxes and masks (see `lrp/data/scenes.py`). `photographs`
gives those that ship inside scikit-image and scikit-learn. `imagenet_val` and `cifar10` read ImageNet and
CIFAR-10 where you have them. Every image is RGB in [0, 1]; a `Normalizer` turns it into the input of a network.
"""

import csv
import os
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..errors import DataError
from .normalizer import CAFFE, IMAGENET, SCENE, SCENE_255, Normalizer, bounds, denormalize, normalize
from .scenes import VERSION, Scenes, scenes

__all__ = ["CIFAR10_CLASSES", "DATA", "Photos", "cifar10", "find", "imagenet_classes", "imagenet_val", "photographs"]
__all__ += ["CAFFE", "IMAGENET", "SCENE", "SCENE_255", "Normalizer", "bounds", "denormalize", "normalize"]
__all__ += ["VERSION", "Scenes", "scenes"]

DATA = Path(__file__).resolve().parents[2] / "data"


# ---------------------------------------------------------------- photographs

# what ships inside the wheels of scikit-image and, as .jpg, of scikit-learn: nothing is downloaded
_PHOTOGRAPHS = {"astronaut": "astronaut", "camera": "camera", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket"}
_PHOTOGRAPHS |= {"china": "china.jpg", "flower": "flower.jpg"}


def photographs(names=None, size=224):
    """Photographs by name, each (3, size, size) float32 RGB in [0, 1]: the central square, resized with antialiasing.

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
    return _pixels(image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)))


def _pixels(image):
    """A picture in RGB as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# ---------------------------------------------------------------- ImageNet and CIFAR-10, where you have them


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
    root = Path(root or find("imagenet", fix="set LRP_DATA to a folder with ImageNet's validation images in it"))
    for file in ("LOC_val_solution.csv", "LOC_synset_mapping.txt", "val"):
        if not (root / file).exists():
            raise DataError(f"{root / file} is missing: it comes with ImageNet's localisation challenge (kaggle.com)")
    classes = sorted(line.split()[0] for line in (root / "LOC_synset_mapping.txt").read_text().splitlines())
    with open(root / "LOC_val_solution.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (root / "val" / f"{row['ImageId']}.JPEG").exists()][:n]
    if not rows:
        raise DataError(f"no image of {root / 'LOC_val_solution.csv'} lies in {root / 'val'}: unpack the images there")
    seen = []  # (image, label, boxes) of each row
    for row in tqdm(rows, desc="ImageNet", leave=False, disable=len(rows) < 300):
        words = row["PredictionString"].split()  # for each box: class, x0, y0, x1, y1
        corners = torch.tensor([[float(word) for word in words[k + 1 : k + 5]] for k in range(0, len(words), 5)])
        with Image.open(root / "val" / f"{row['ImageId']}.JPEG") as image:
            pixels, inside = _center(image.convert("RGB"), corners, size)
        seen.append((pixels, classes.index(words[0]), inside))
    images, labels, boxes = zip(*seen, strict=True)
    return Photos(torch.stack(images), torch.tensor(labels), list(boxes), [row["ImageId"] for row in rows])


def _center(image, corners, size):
    """The picture resized and cut to (3, size, size), and its boxes in the pixels of the result."""
    scale = round(size * 256 / 224) / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = _pixels(image.crop((left, top, left + size, top + size)))
    corners = (corners * scale - torch.tensor([left, top, left, top])).clamp(0, size)
    seen = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    return pixels, corners[seen]


@cache
def imagenet_classes():
    """The names of ImageNet's 1000 classes, in the order of torchvision's outputs."""
    from torchvision.models import SqueezeNet1_1_Weights

    return tuple(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])


CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def cifar10(root=None, n=None):
    """The first `n` of CIFAR-10's test images that are there (Krizhevsky 2009), 32 x 32, the ten classes in turn.

    `root` holds a folder of pictures per class (torchvision's `ImageFolder`), by default the folder
    `cifar10/test` that `find` sees. Labels are places in `CIFAR10_CLASSES`; there are no boxes. JPEG copies cost a
    network several points of accuracy. Raises DataError when files are missing.
    """
    root = Path(root or find("cifar10/test", fix="set LRP_DATA to a folder with CIFAR-10's test images in it"))
    folders = [[(label, path) for path in _pictures(root / name)] for label, name in enumerate(CIFAR10_CLASSES)]
    chosen = [entry for turn in zip_longest(*folders) for entry in turn if entry is not None][:n]
    images = []
    for _, path in chosen:
        with Image.open(path) as image:
            images.append(_pixels(image.convert("RGB")))
        if images[-1].shape != (3, 32, 32):
            raise DataError(f"{path} is not 32 x 32 pixels, as CIFAR-10's images are")
    labels = torch.tensor([label for label, _ in chosen])
    names = [f"{path.parent.name}/{path.stem}" for _, path in chosen]
    return Photos(torch.stack(images), labels, [torch.zeros(0, 4)] * len(chosen), names)


def _pictures(folder):
    """The pictures in a folder, in the order of their names; DataError where there is none."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise DataError(f"no picture in {folder}: CIFAR-10's test images go there, one folder per class")
    return files


# ---------------------------------------------------------------- files that are not ours


def find(relative, fix="run `make data`, or set LRP_DATA to the folder that has it"):
    """The path of a data file: under LRP_DATA, else `data/raw`, else `data`; DataError if nowhere."""
    own = os.environ.get("LRP_DATA")
    for folder in (*filter(None, [own]), DATA / "raw", DATA):
        if (path := Path(folder, relative)).exists():
            return path
    raise DataError(f"{relative} is neither under LRP_DATA ({own or 'not set'}) nor in {DATA}: {fix}")
