"""Scenes: real handwritten digits on real textures, with exact boxes and masks.

The digits are scikit-learn's (8 x 8 pixels; Alpaydin and Kaynak 1998), drawn smoothly at any size; the ground
is cut from the textures of scikit-image. Where a digit is, and which pixels are its ink, is known: ground
truth that photographs lack.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..errors import DataError
from .normalizer import normalize

SPLITS = ("train", "test")
TEXTURES = ("brick", "grass", "gravel")
VERSION = 1  # raise it when the same arguments give other pixels, and train again


@dataclass(frozen=True)
class Scenes:
    """N scenes with D places for digits; where a scene has fewer, label is -1, box 0 and mask empty.

    images (N, 3, H, W) float32 RGB in [0, 1]; labels (N, D) long, the digit, 0 to 9; boxes (N, D, 4) long, x0
    y0 x1 y1 in pixels around the ink, x1 and y1 exclusive; masks (N, D, H, W) bool, the ink. An index
    (number, slice, list, mask) gives Scenes again; a number gives N = 1.
    """

    images: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if not isinstance(index, slice):
            index = torch.as_tensor(index).reshape(-1)
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def inputs(self):
        """Normalised images, (N, 3, H, W): what `scene_vgg` and `scene_resnet` take."""
        return normalize(self.images)


def scenes(
    n,
    digits=1,
    size=64,
    seed=0,
    split="train",
    *,
    start=0,
    classes=None,
    distinct=True,
    scale=(0.34, 0.6),
    contrast=(0.28, 0.45),
    textures=TEXTURES,
):
    """Draw scenes `start` to `start + n` of an endless, fixed sequence: real digits as ink on real textures.

    Scene i depends on `seed`, `split`, i and the options alone; `size` (pixels) changes only its resolution.
    Train and test have no handwritten digit and no part of a texture in common. `digits` is how many, or (fewest,
    most); `classes` those that may occur; `distinct` forbids the same class twice; `scale` is the height of a
    digit's square in scene heights (less where several must fit); `contrast` the difference in brightness
    between ink and ground, which is as often darker as lighter. Raises DataError for options that no scene
    can meet.
    """
    fewest, most = (digits, digits) if isinstance(digits, int) else digits
    classes = sorted({*range(10)} if classes is None else {*classes})
    _check(fewest, most, size, seed, split, classes, distinct, textures)
    images = np.empty((n, 3, size, size), np.float32)
    labels = np.full((n, most), -1, np.int64)
    boxes = np.zeros((n, most, 4), np.int64)
    masks = np.zeros((n, most, size, size), bool)
    for row in tqdm(range(n), desc=f"{split} scenes", leave=False, disable=n < 3000):
        rng = np.random.default_rng([seed, SPLITS.index(split), start + row])
        count = int(rng.integers(fewest, most + 1))
        labels[row, :count] = rng.choice(classes, count, replace=not distinct)
        image, mean = _ground(rng, size, split, textures)
        for place, (center, side) in enumerate(_places(rng, count, scale)):
            ink = _ink(rng, size, split, labels[row, place], center, side)
            image = _paint(rng, image, ink, mean, contrast)
            masks[row, place] = ink > 0.5
            boxes[row, place] = _box(masks[row, place])
        images[row] = _light(rng, image).clip(0, 1)
    return Scenes(*map(torch.from_numpy, (images, labels, boxes, masks)))


def _check(fewest, most, size, seed, split, classes, distinct, textures):
    """Raise DataError for options of `scenes` that no scene can meet."""
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {SPLITS}")
    if not textures or not set(textures) <= set(TEXTURES):
        raise DataError(f"textures {textures}: choose from {TEXTURES}")
    if not classes or not {*classes} <= {*range(10)}:
        raise DataError(f"classes {classes} must be digits from 0 to 9")
    if not 1 <= fewest <= most or (distinct and most > len(classes)):
        raise DataError(
            f"{fewest} to {most} digits cannot be drawn from classes {classes}: give more, or distinct=False"
        )
    if size < 32 or seed < 0:
        raise DataError(f"size {size} must be at least 32 pixels, and seed {seed} at least 0")


@cache
def _digits(split):
    """Per class the 8 x 8 images of a split in [0, 1], with a margin of 2; every fifth is for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    padded = np.pad(data.images / 16, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    groups = [padded[data.target == label] for label in range(10)]
    test = [np.arange(len(group)) % 5 == 4 for group in groups]
    return [group[chosen if split == "test" else ~chosen] for group, chosen in zip(groups, test, strict=True)]


@cache
def _texture(name, split):
    """The part of a texture that a split may use: columns 0-320 of 512 for training, 336-512 for testing."""
    from skimage import data

    gray = getattr(data, name)().astype(np.float32) / 255
    return gray[:, :320] if split == "train" else gray[:, 336:]


def _ground(rng, size, split, textures):
    """A tinted crop of a texture, (3, size, size), and its mean brightness."""
    region = _texture(textures[rng.integers(len(textures))], split)
    crop = rng.uniform(64, 160)
    y, x = rng.uniform(0, 1, 2) * (np.array(region.shape) - crop)
    gray = np.asarray(
        Image.fromarray(region).resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + crop, y + crop))
    )
    gray = np.rot90(gray, rng.integers(4))
    gray = ((gray - gray.mean()) / gray.std()).clip(-2.5, 2.5)  # textures differ; their contrast is to be drawn
    mean, deviation = rng.uniform(0.25, 0.75), rng.uniform(0.06, 0.12)
    tint = rng.uniform(0.8, 1.2, 3)
    return (mean + deviation * gray) * (tint / tint.mean())[:, None, None], mean


def _places(rng, count, scale):
    """Centres (x, y) and sides of `count` squares that do not overlap, in scene heights."""
    largest = min(scale[1], 0.9 / np.ceil(np.sqrt(count)))
    sides = rng.uniform(min(scale[0], 0.8 * largest), largest, count)
    while True:  # smaller squares after 256 tries, so this ends
        half = sides / 2 + 0.02
        centers = half[:, None] + rng.uniform(0, 1, (256, count, 2)) * (1 - 2 * half)[:, None]
        gaps = np.abs(centers[:, :, None] - centers[:, None]).max(-1) - (half[:, None] + half)
        free = (gaps + 2 * np.eye(count) >= 0).all((1, 2))
        if free.any():
            return list(zip(centers[free.argmax()], sides, strict=True))
        sides = 0.95 * sides


def _ink(rng, size, split, label, center, side):
    """Coverage by ink in [0, 1], (size, size): one digit, turned by up to 10 degrees, inside its square."""
    samples = _digits(split)[label]
    sample = samples[rng.integers(len(samples))]
    angle, slant = rng.uniform(-10, 10) * np.pi / 180, rng.uniform(-0.1, 0.1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ np.array([[1, slant], [0, 1]])
    step = turn * 8 / (side * size)  # pixels of the digit per pixel of the scene
    offset = len(sample) / 2 - step @ (center * size)
    affine = (*step[0], offset[0], *step[1], offset[1])
    gray = np.asarray(
        Image.fromarray(sample).transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    )
    distance = np.abs((np.arange(size) + 0.5) / size - center[:, None]) <= side / 2
    ramp = ((gray - 0.32) / 0.36).clip(0, 1) * distance[1][:, None] * distance[0]
    return ramp * ramp * (3 - 2 * ramp)  # a smooth step: edges at any size, without stairs of 8 x 8 pixels


def _paint(rng, image, ink, mean, contrast):
    """The image under ink of some colour, darker or lighter than the ground's mean, never quite opaque."""
    difference = rng.uniform(*contrast)
    sign = rng.choice((-1, 1))
    if not 0 <= mean + sign * difference <= 1:  # no room on this side of the ground
        sign = -sign
    hue = rng.uniform(-0.15, 0.15, 3)
    color = mean + sign * difference + hue - hue.mean()
    cover = ink * rng.uniform(0.8, 0.95)
    return image * (1 - cover) + color[:, None, None] * cover


def _light(rng, image):
    """The image under light that falls off linearly in some direction, by up to 20 % on either side."""
    y, x = np.mgrid[: 1 : image.shape[1] * 1j, : 1 : image.shape[2] * 1j] - 0.5
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4)
    return image * (1 + fall * (x * np.cos(angle) + y * np.sin(angle)))


def _box(mask):
    """The box around a mask: x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
