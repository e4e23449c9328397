"""Does a map depend on what the network has learned? Parameters are randomised layer by layer (adebayo2018sanity).

Cascading from the output down, or one layer at a time, on a copy of the model: layers in the order in which they are
executed, the explained class fixed to the original prediction, each layer and draw with random numbers of its own.
The similarity of the maps before and after is kept per layer and sample; the original itself is not among the rows.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from tqdm import tqdm

from .. import checks
from ..engine import Target
from ..errors import LRPError
from . import flipping, metrics
from .metrics import spearman, ssim

Mode = Literal["cascading", "independent"]
MODES: tuple[str, ...] = get_args(Mode)
NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
WEIGHT, BIAS = (0.5, 1.5), (-0.5, 0.5)  # ends of the uniform distributions for those of a norm


# ---------------------------------------------------------------- random parameters


def layers(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules with parameters of their own, from the output down, in the order of execution.

    A module that is called several times stands where its last call was; one that is never called is left out.
    Raises LRPError where there is none.
    """
    copied, called = copy.deepcopy(model), []
    for name, module in copied.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        checks.run(copied, x[:1])
    if not called:
        raise LRPError(f"no module of {type(model).__name__} with parameters of its own is called")
    return list(dict.fromkeys(reversed(called)))


@torch.no_grad()
def reset(module: nn.Module, seed: int | Sequence[int]) -> None:
    """Draw the module's own parameters anew, in place, from `seed` alone; buffers stay as they are.

    * Norms (batch, instance, layer, group): weight from U(0.5, 1.5), bias from U(-0.5, 0.5). Deviation: their own
      `reset_parameters` gives 1 and 0, which is not random, and resets the running statistics as well.
    * Others with `reset_parameters`: by it, from torch's initial distribution.
    * Others: the values of each parameter in another order.

    The draw is made on the CPU, so that devices agree, and leaves the global random numbers alone. Raises LRPError
    where nothing changed.
    """
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator, own, new = torch.Generator().manual_seed(number), dict(module.named_parameters(recurse=False)), {}
    if not isinstance(module, NORMS) and callable(getattr(module, "reset_parameters", None)):
        fresh = copy.deepcopy(module).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            fresh.reset_parameters()
        new = dict(fresh.named_parameters(recurse=False))
    for name, p in own.items():
        if isinstance(module, NORMS):
            ends = WEIGHT if name == "weight" else BIAS
            new[name] = torch.empty(p.shape, dtype=p.dtype).uniform_(*ends, generator=generator)
        elif name not in new:
            new[name] = p.cpu().flatten()[torch.randperm(p.numel(), generator=generator)].view(p.shape)
    if all(torch.equal(p.cpu(), new[name]) for name, p in own.items()):
        raise LRPError(f"{module} is the same after its parameters were drawn anew: leave it out of `names`")
    for name, p in own.items():
        p.copy_(new[name])


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor, known: dict | None = None) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Mean and variance, per channel, of what each BatchNorm with running statistics gets for x, call by call.

    With the `known` ones of the model before it was changed, those BatchNorms that now get something else take what
    they get as their running statistics: one pass, each set before it works, so that the next one sees the result.
    One with a single value per channel stays as it is.
    """
    seen: dict[str, list] = {}

    def look(name, module, given):
        values = given.transpose(0, 1).flatten(1)
        if values.shape[1] > 1:
            calls = seen.setdefault(name, [])
            calls.append((values.mean(1), values.var(1)))
            before = known[name][len(calls) - 1] if known else calls[-1]
            if not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(calls[-1], before, strict=True)):
                module.running_mean.copy_(calls[-1][0])
                module.running_var.copy_(calls[-1][1])

    norms = {k: m for k, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    handles = [m.register_forward_pre_hook(lambda m, given, k=k: look(k, m, given[0])) for k, m in norms.items()]
    try:
        checks.run(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def degrade(
    model: nn.Module,
    x: Tensor,
    mode: Mode = "cascading",
    *,
    seed: int | Sequence[int] = 0,
    names: Sequence[str] | None = None,
    statistics: bool = True,
) -> Iterator[tuple[str, nn.Module]]:
    """Yield ("", a copy of the model), then (layer, that copy with this layer, or all down to it, randomised).

    It is one copy, changed from step to step; a layer gets the same values in both modes. `names` are the layers
    (default all of `layers`). With `statistics`, BatchNorms whose input has changed are calibrated on x, as their
    running statistics belong to another network; without, they stay. No other parameter or buffer changes.

    Raises LRPError for an unknown mode or layer.
    """
    flipping.known("mode", mode, MODES)
    order = layers(model, x)
    if unknown := sorted(set(names or ()) - set(order)):
        raise LRPError(f"no layer with parameters is called {', '.join(unknown)}; there are {', '.join(order)}")
    copied = copy.deepcopy(model)
    state = copy.deepcopy(copied.state_dict())
    known = calibrate(copied, x) if statistics else {}
    yield "", copied
    for place, name in enumerate(order):
        if names is None or name in names:
            if mode == "independent":
                copied.load_state_dict(state)
            reset(copied.get_submodule(name), [*np.atleast_1d(seed), place])
            if known:
                calibrate(copied, x, known)
            yield name, copied


# ---------------------------------------------------------------- how alike are the maps?


def similarity(R: Tensor, S: Tensor) -> dict[str, Tensor]:
    """How alike two maps of each sample are: rank correlation of R and `|R|`, structural similarity, cosine; (N,)."""
    R, S = metrics.heat(R), metrics.heat(S)
    rows = {"spearman": spearman(R, S), "spearman_abs": spearman(R.abs(), S.abs())}
    return rows | {"ssim": ssim(R, S), "cosine": metrics.cosine(R, S).cpu()}


def randomise(
    model: nn.Module,
    x: Tensor,
    method: Callable[[nn.Module, Tensor, Tensor], Tensor],
    target: Target = None,
    mode: Mode = "cascading",
    *,
    draws: int = 1,
    seed: int = 0,
    names: Sequence[str] | None = None,
    statistics: bool = True,
) -> pd.DataFrame:
    """Maps of a network against those with randomised parameters: the sanity check of adebayo2018sanity.

    Args:
        model: gives logits (N, K), in eval mode; it is only read.
        x: images (N, C, H, W).
        method: `method(model, x, target)` gives maps (N, H, W) or (N, C, H, W), as in `lrp.evaluate.baselines`.
        target: as in `LRP.explain`; None is the class that the original model predicts. It stays fixed.
        mode: "cascading" (all layers from the output down to this one) or "independent" (this one alone).
        draws: how often everything is drawn anew.
        names, statistics: which layers, and what becomes of BatchNorm, as in `degrade`.

    Returns a table with a row per draw, layer and sample: mode, draw, depth (1 is the top), layer, sample and the
    four numbers of `similarity`. Deviation from Quantus: layers in the order of execution, not of registration;
    other random numbers in every layer and draw; norms drawn at random; no row for the unchanged model.

    Raises InputError, TargetError or LRPError, naming the layer where a map is not finite.
    """
    flipping.images(model, x, target)
    with torch.no_grad():
        target = flipping.Flips(copy.deepcopy(model), x, target, output="logit").target.to(x.device)
    frames, original = [], None
    total = draws * len(layers(model, x) if names is None else set(names))
    with tqdm(total=total, desc=f"{mode} randomisation", leave=False) as bar:
        for draw in range(draws):
            steps = degrade(model, x, mode, seed=[seed, draw], names=names, statistics=statistics)
            _, net = next(steps)  # unchanged so far
            original = _map(method, net, x, target, "as it is") if original is None else original
            for depth, (layer, net) in enumerate(steps, start=1):
                R = _map(method, net, x, target, f"with `{layer}` randomised")
                row = {"mode": mode, "draw": draw, "depth": depth, "layer": layer, "sample": range(len(x))}
                frames.append(pd.DataFrame(row | {k: v.numpy() for k, v in similarity(original, R).items()}))
                bar.update()
    return pd.concat(frames, ignore_index=True)


def _map(method: Callable, net: nn.Module, x: Tensor, target: Tensor, state: str) -> Tensor:
    """The method's maps, (N, H, W); raises LRPError that tells the state of the network where one is not finite."""
    R = metrics.heat(method(net, x, target).detach())
    if not torch.isfinite(R).all():
        raise LRPError(f"a map is not finite {state}")
    return R


def curve(table: pd.DataFrame, measure: str = "spearman") -> pd.DataFrame:
    """The table of one mode by depth: layer, mean, low and high (`metrics.interval` over samples), n and left_out.

    Draws are averaged first: they are no new samples. A depth where no sample has a value gets NaN.
    """
    rows = []
    for (depth, layer), part in table.groupby(["depth", "layer"]):
        values = part.groupby("sample")[measure].mean().to_numpy()
        i = metrics.interval(values) if np.isfinite(values).any() else metrics.Interval(*3 * [np.nan], 0, len(values))
        rows.append({"depth": depth, "layer": layer} | asdict(i))
    return pd.DataFrame(rows).set_index("depth")
