"""A trial: a network with images that it gets right, on which treatments are explained and flipped alike."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..composites import Composite
from ..data import models
from ..engine import LRP
from ..errors import DataError
from ..evaluate import perturbation


@dataclass(frozen=True, eq=False)
class Trial:
    """One network on its own ground: inputs (N, C, H, W) it classifies correctly, their labels (N,), their bounds.

    `settings` go to every `perturbation.curves` of this trial: steps, region, seed, ...
    """

    name: str
    model: nn.Module = field(repr=False)
    x: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    settings: dict

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor, device="cpu", batch: int = 64, **settings) -> "Trial":
        """Load a network by name and keep the images (N, 3, H, W) in [0, 1] that it classifies as labelled.

        Raises DataError where it gets none of them right, and what `models.load` raises.
        """
        fast = {"memory_format": torch.channels_last}  # half the time on a CPU
        model, normalizer = models.load(name, device=device).to(**fast), models.normalizer(name)
        x, labels = normalizer(images).to(device, **fast), labels.to(device)
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in x.split(batch)]) == labels
        if not right.any():
            raise DataError(f"{name} gets none of the {len(x)} images right: are they normalised and labelled for it?")
        low, high = (bound.to(device) for bound in normalizer.bounds())
        return cls(name, model, x[right], labels[right], {"low": low, "high": high} | settings)

    def __len__(self) -> int:
        return len(self.x)

    def maps(self, composite: Composite, batch: int = 32) -> Tensor:
        """Relevance of the true class's logit, channels summed: (N, H, W)."""
        explainer = LRP(self.model, composite)
        parts = zip(self.x.split(batch), self.labels.split(batch), strict=True)
        return torch.cat([explainer.attribute(x, target).sum(1) for x, target in parts])

    def flip(self, relevance: Tensor | None, order: str = "morf", **options) -> perturbation.Curves:
        """Scores of the true class as pixels are replaced by noise; see `perturbation.curves`."""
        return perturbation.curves(self.model, self.x, relevance, self.labels, order=order, **self.settings | options)
