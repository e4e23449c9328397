"""DMBP (reconstructed objective; the original code and text were not available): a gradient split by filter masks.

Disentangled masked backpropagation learns, for one image and class, masks on the filters of a ReLU network, such that
backpropagation through the masked network gives a mapping W+ whose attribution W+ x is positive, and another, W-, whose
attribution is negative; what is left of the gradient is nuisance. The idea, the two mappings, 200 iterations and the
display are the authors'; the loss, its weights, the start and the optimiser are reconstructed, and so is every number
made with them. No number of the paper is known to compare them with.
The attribution depends on where the input is zero: with normalised images that is the mean colour of the data.
Source: ruiz2021generating. `lrp.studies.masked` has the masked network, `lrp.studies.dmbp_result` the result.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import checks
from ..engine import Target, full_precision
from ..errors import InputError, LRPError, TargetError
from ..evaluate.baselines import Cached
from ..evaluate.flipping import known
from ..network.tracing import capture
from ..seeds import one_hot
from .dmbp_result import DMBPResult, mass_of, positive_share, scale_of, total
from .masked import MaskedNetwork, require_piecewise_linear

Masks = Literal["independent", "softmax", "maxmin"]
MASKS = get_args(Masks)
STALL = 1e-4  # a loss that falls by less has stalled


# ---------------------------------------------------------------- the loss (reconstructed)


def completeness(P: Tensor, N: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """`((sum P + sum N - y(1)) / scale)^2`: the mappings together against the gradient; (N, ...) -> (N,)."""
    return ((total(P) + total(N) - y) / scale).square()


def wrong_sign(P: Tensor, N: Tensor, mass: Tensor) -> Tensor:
    """`(sum [-P]_+ + sum [N]_+) / S`: what has the wrong sign in each mapping; (N, ...) -> (N,)."""
    return (total((-P).relu()) + total(N.relu())) / mass


def evidence(P: Tensor, N: Tensor, mass: Tensor) -> Tensor:
    """`(sum [P]_+ + sum [-N]_+) / S`: what has the right sign, to be large: zero mappings are pure, too; -> (N,)."""
    return (total(P.relu()) + total((-N).relu())) / mass


def extremes(P: Tensor, N: Tensor, mass: Tensor) -> Tensor:
    """`(sum N - sum P) / S`: as small as can be where P is as large, and N as small, as masks allow; -> (N,)."""
    return (total(N) - total(P)) / mass


def mean_mask(masks: Tensor) -> Tensor:
    """Mean of the masks of both mappings over all filters, (2, N, C) -> (N,): small where few filters are used."""
    return masks.mean((0, 2))


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms, each at least 0 (reconstructed); LRPError for other numbers.

    They are those of `completeness`, `wrong_sign`, `evidence` (which counts with a minus) and `mean_mask`. For
    masks="maxmin", `keep` weighs `extremes`, and `completeness` and `purity` are not used. Completeness 5 is the least
    that brought its error below 1 % on nearly all images of two small networks; more costs purity.
    """

    completeness: float = 5.0
    purity: float = 1.0
    keep: float = 0.5
    sparsity: float = 0.01

    def __post_init__(self):
        for name, weight in vars(self).items():
            _number(f"the weight of {name}", weight, 0)


def _number(name: str, value, low: float, *, above: bool = False, whole: bool = False) -> None:
    """Raise LRPError unless the value is a finite number (or a whole one) of at least `low`, or above it."""
    sound = isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or value < low or (above and value == low):
        what = "a whole number" if whole else "a finite number"
        raise LRPError(f"{name} is {what} {'above' if above else 'of at least'} {low}; got {value!r}")


# ---------------------------------------------------------------- the method


@dataclass(eq=False, repr=False)
class DMBP:
    r"""DMBP (reconstructed objective; the original code and text were not available): W+ and W- for each image.

    .. math:: P = W(m^+) x, \quad N = W(m^-) x, \quad
              L = c\,\text{completeness} + p\,\text{wrong sign} - k\,\text{evidence} + s\,\overline{m}

    is minimised by Adam over the masks, one for each image, mapping, filter and ReLU. The terms are functions of this
    file, their weights `Weights`; all of it is reconstructed. The model is only read.

    Args:
        model: piecewise linear: ReLU and its like, max and average pools, sums, concatenations; in eval mode. It maps
            (N, ...) to scores (N, K), those before a softmax.
        masks: "independent", m = sigmoid(theta); "softmax", one over {positive, negative, nuisance} of each filter;
            or "maxmin", sigmoids again, but the largest sum of P and the smallest of N are sought (`extremes`).
        weights: of the loss terms.
        start: theta of both mappings; 2 is m = 0.88. Masks multiply from layer to layer: from 0, where m = 0.5, a deep
            network starts near zero, with nearly no gradient, and may stay there. For "softmax" nuisance starts at 0,
            and 2 is m = 0.47 for each of the two.
        rate: Adam's.
        seed, noise: normal noise of this standard deviation is added to the start, the same for all images.
        freeze_lrn: count the denominators of local response normalisation at x as constants.

    Raises CaptureError, UnsupportedOperation for a network that is not piecewise linear, InputError for one in training
    mode, LRPError for arguments that cannot be.
    """

    model: nn.Module
    masks: Masks = "independent"
    weights: Weights | None = None
    _: KW_ONLY
    start: float = 2.0
    rate: float = 0.1
    seed: int = 0
    noise: float = 0.0
    freeze_lrn: bool = False

    def __post_init__(self):
        checks.mode(self.model)
        known("kind of masks", self.masks, MASKS)
        self.weights = self.weights or Weights()
        if not isinstance(self.weights, Weights):
            raise LRPError(f"weights are dmbp.Weights(completeness=..., purity=..., ...); got {self.weights!r}")
        _number("start", self.start, -math.inf)
        _number("rate", self.rate, 0, above=True)
        _number("noise", self.noise, 0)
        _number("seed", self.seed, 0, whole=True)
        self.graph = capture(self.model)
        require_piecewise_linear(self.graph, self.freeze_lrn)

    def attribute(
        self,
        x: Tensor,
        target: Target = None,
        num_its: int = 200,
        progress: bool = True,
        patience: int | None = None,
        masks: dict[str, Tensor] | None = None,
    ) -> DMBPResult:
        """The two mappings of each image; the images of a batch do not influence each other.

        Args:
            x: input (N, ...), float32 or float64, in the model's dtype and on its device.
            target: None for the predicted class, an int for all, or a LongTensor (N,).
            num_its: iterations; with 0 the result is that of the start.
            progress: a bar after five seconds.
            patience: stop when for so many iterations no image's loss has fallen by 1e-4 or more.
            masks: those of an earlier result; the optimisation starts from them (with Adam's moments at zero).

        Raises InputError for the input or the masks, TargetError, UnsupportedOperation, LRPError.
        """
        checks.mode(self.model)
        checks.tensor(x, self.model)
        if x.dtype not in (torch.float32, torch.float64):
            raise InputError(f"masks are learned in float32 or float64, not {x.dtype}: use model.float() and x.float()")
        if isinstance(target, list | tuple):
            raise TargetError("one target per image: None, an int, or a LongTensor (N,); call again for another class")
        _number("num_its", num_its, 0, whole=True)
        if patience is not None:
            _number("patience", patience, 1, whole=True)
        checks.finite_weights(self.model)
        with torch.inference_mode(False), torch.no_grad(), full_precision(x):
            x = x.detach().clone()
            output = checks.run(self.model, x)
            checks.logits(output, self.model)
            target = checks.targets(target, output)[0][0]
            both = MaskedNetwork(self.graph, torch.cat([x, x]), self.freeze_lrn)
            checks.same_output(output, both.output[: len(x)], self.model)
            return self._run(both, x, output, target, num_its, progress, patience, masks)

    def _run(self, both: MaskedNetwork, x, output, target, num_its, progress, patience, masks) -> DMBPResult:
        n, sizes = len(x), list(both.masked.values())
        seed = one_hot(target, output).repeat(2, 1)
        mapping, b_eff = (t[:n] for t in both.gradient(seed))
        G = mapping * x
        mass = mass_of(G)
        sums = total(G), mass, scale_of(output.gather(1, target[:, None])[:, 0], mass)
        theta = self._start(both, n, x) if masks is None else self._resume(both, n, x, masks)
        theta.requires_grad_()
        adam, rows, best, stalled = torch.optim.Adam([theta], lr=self.rate), [], math.inf, 0
        for it in tqdm(range(num_its + 1), desc="DMBP", leave=False, delay=5, disable=not progress):
            with torch.enable_grad():
                m = self._squash(theta)
                loss, row, W = self._loss(both, seed, m, x, sums)
                rows.append({"iteration": it} | row)
                fell = loss.detach() < best - STALL
                best, stalled = torch.where(fell, loss.detach(), best), 0 if fell.any() else stalled + 1
                if it == num_its or stalled == patience:
                    break
                adam.zero_grad()
                loss.sum().backward()
                adam.step()
        if not torch.isfinite(W).all():
            raise LRPError("the mappings are not finite: lower the rate, or use float64")
        masks = dict(zip([node.name for node in both.masked], m.detach().split(sizes, 2), strict=True))
        return DMBPResult(
            W[0], W[1], mapping - W[0] - W[1], mapping, W[0] * x, W[1] * x, G, b_eff, output, target,
            masks, pd.DataFrame(rows), both.frozen, it,
        )  # fmt: skip

    def _loss(self, both: MaskedNetwork, seed, m: Tensor, x, sums) -> tuple[Tensor, dict, Tensor]:
        """Loss by image (N,), a row of the history, and W+ and W-, (2, N, ...), for masks m, (2, N, all filters)."""
        y, mass, scale = sums
        parts = [part.flatten(0, 1) for part in m.split(list(both.masked.values()), 2)]
        W = both.mapping(seed, parts).unflatten(0, (2, -1))
        P, N = W * x
        c = self.weights
        terms = {"mean_mask": (mean_mask(m), c.sparsity)}
        if self.masks == "maxmin":
            terms["extremes"] = extremes(P, N, mass), c.keep
        else:
            terms["completeness"] = completeness(P, N, y, scale), c.completeness
            terms["wrong_sign"] = wrong_sign(P, N, mass), c.purity
            terms["evidence"] = evidence(P, N, mass), -c.keep
        loss = sum(weight * term for term, weight in terms.values())
        values = {"loss": loss} | {name: term for name, (term, _) in terms.items()}
        values |= {"completeness_error": completeness(P, N, y, scale).sqrt(), "purity": positive_share(P)}
        return loss, {name: float(value.detach().nanmean()) for name, value in values.items()}, W.detach()

    def _squash(self, theta: Tensor) -> Tensor:
        """Masks (2, N, C) from theta."""
        return theta.softmax(0)[:2] if self.masks == "softmax" else theta.sigmoid()

    def _start(self, both: MaskedNetwork, n: int, x: Tensor) -> Tensor:
        filters = sum(both.masked.values())
        theta = torch.full((2, 1, filters), float(self.start), dtype=torch.float64)
        if self.masks == "softmax":
            theta = torch.cat([theta, torch.zeros(1, 1, filters)])
        noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return (theta + self.noise * noise).to(x).repeat(1, n, 1)

    def _resume(self, both: MaskedNetwork, n: int, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        shapes = {node.name: (2, n, filters) for node, filters in both.masked.items()}
        given = {name: tuple(m.shape) for name, m in masks.items()}
        if given != shapes:
            name = min(name for name in given.keys() | shapes.keys() if given.get(name) != shapes.get(name))
            raise InputError(f"masks of `{name}` have shape {given.get(name)}; {shapes.get(name)} is needed")
        m = torch.cat([masks[name].to(x) for name in shapes], 2)
        if not ((m >= 0) & (m <= 1)).all():
            raise InputError("masks are numbers from 0 to 1")
        if self.masks == "softmax":
            return torch.cat([m, (1 - m.sum(0, keepdim=True))]).clamp(min=1e-7).log()
        return m.logit(1e-7)


def dmbp_method(side: Literal["both", "positive", "negative"] = "both", num_its: int = 200, **options) -> Callable:
    """DMBP (reconstructed) as a method `(model, x, target) -> (N, H, W)`, as in `baselines`: channels summed.

    side: "both" is P + N, "positive" P and "negative" -N, which is large where the negative mapping says "against".
    Options are those of `DMBP`. The last model is captured once, at its first call.
    """
    known("side", side, ("both", "positive", "negative"))
    explainer = Cached(lambda model: DMBP(model, **options))

    def method(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
        found = explainer(model).attribute(x, target, num_its, progress=False)
        P, N = found.pos_attribution, found.neg_attribution
        return {"both": P + N, "positive": P, "negative": -N}[side].sum(1)

    return method
