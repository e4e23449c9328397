"""What networks see: from RGB images in [0, 1] to the input of a network, and back."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Map RGB images in [0, 1] to a network's input: (image - mean) / std per channel, channels in `order`.

    Images and inputs are (N, 3, H, W) or (3, H, W); `mean` and `std`, three numbers or an image (3, H, W), are
    given in the order of the *input's* channels.
    """

    mean: tuple | torch.Tensor
    std: tuple | torch.Tensor
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
        """Lowest and highest possible input, each (1, 3, 1, 1), or (1, 3, H, W) where the mean is an image.

        They are the box of the z^B rule (Montavon 2017).
        """
        like = torch.zeros(()) if like is None else like
        mean, std = self._columns(like)
        return ((0 - mean) / std)[None], ((1 - mean) / std)[None]

    def _columns(self, like):
        for values in (self.mean, self.std):
            column = torch.as_tensor(values, dtype=like.dtype, device=like.device)
            yield column if column.ndim == 3 else column[:, None, None]


MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SCENE = Normalizer(MEAN, STD)
SCENE_255 = Normalizer(MEAN, (1 / 255,) * 3)  # 0..255 minus the middle: the scale of Caffe
IMAGENET = Normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# BGR, 0..255, minus the mean of ImageNet
CAFFE = Normalizer((104 / 255, 117 / 255, 123 / 255), (1 / 255,) * 3, order=(2, 1, 0))
normalize, denormalize, bounds = SCENE, SCENE.inverse, SCENE.bounds
