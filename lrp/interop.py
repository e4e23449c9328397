"""The package under the calling conventions of others."""

import numpy as np
import torch
from torch import nn

from .composites import Composite
from .engine import LRP


def quantus_explain(model: nn.Module, inputs, targets, composite: Composite | None = None, **options) -> np.ndarray:
    """Relevance as Quantus' `explain_func` gives it: arrays in, an array shaped like `inputs` out.

    Args:
        model: the network, in eval mode.
        inputs: array or tensor (N, ...).
        targets: class of each sample, array or tensor (N,), or an int.
        composite: which rule where (default `composites.EpsilonPlus()`).
        options: `seed` as in `LRP.explain`; what Quantus passes besides (`device`, ...) is not needed and ignored.
    """
    p = next(model.parameters(), torch.empty(0))
    x = torch.as_tensor(np.asarray(inputs) if not isinstance(inputs, torch.Tensor) else inputs).to(p)
    if targets is not None and not isinstance(targets, int):
        targets = torch.as_tensor(np.asarray(targets), dtype=torch.long)
    return LRP(model, composite).attribute(x, targets, seed=options.get("seed")).cpu().numpy()
