"""Echo state networks on images, fed column by column, and their relevance (landthayen2022layer, landthayen2023fact).

Unrolled in time, the network is a graph like any other: each step is one dense layer on the joined [u(t), x(t-1)],
an activation, and a sum of the old state and the new one. So `LRP` explains it, and the versions of the source differ
in the rule at that sum::

    composite         dense layers       the leaky sum
    signed()          Epsilon, exact     Epsilon: by value, unbounded                   V1 of the source
    fixed(model)      ZPlus              Fixed: 1 - alpha and alpha, for all values     V2
    proportional()    ZPlus              SignAware: among summands of the state's sign  our remedy

At small alpha V2 leaves most of the relevance in the first column: each step passes 1 - alpha back, and the first
column has no step before it.
"""

import copy
from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rules as r
from ..composites import Composite
from ..errors import InputError, LRPError
from ..evaluate.perturbation import known

By = Literal["columns", "rows"]
SWEEPS = get_args(By)
Activation = Literal["tanh", "sigmoid", "relu", "linear"]
ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "linear": lambda a: a}


def sequence(images: Tensor, *, by: By = "columns", backward: bool = False) -> Tensor:
    """Images (N, H, W) or (N, 1, H, W) as what is fed, step by step: (N, T, D), T = W columns of D = H values.

    By rows T = H and D = W. `backward` starts from the right, or from the bottom. Raises LRPError for another sweep.
    """
    steps = images.flatten(1, -2)  # (N, H, W)
    steps = steps.transpose(1, 2) if known("sweep", by, SWEEPS) == "columns" else steps
    return steps.flip(1) if backward else steps


class EchoStateNetwork(nn.Module):
    r"""A reservoir of random, fixed weights that reads an image step by step, and a linear readout of its last state.

    .. math:: a(t) = \mathrm{act}(u(t) W_{in} + b_{in} + x(t-1) W_{res} + b_{res}), \quad
              x(t) = (1 - \alpha) x(t-1) + \alpha a(t), \quad y = x(T) W_{out} + b_{out}

    The first state is x(1) = act(u(1) W_in + b_in).

    Args:
        inputs: D, values per step: the height of the images, or their width by rows.
        units, outputs: n, size of the reservoir, and K, scores per image.
        alpha, leaky: leak rate, in (0, 1]; not leaky, x(t-1) enters whole and not times 1 - alpha.
        activation: "tanh", "sigmoid", "relu" or "linear".
        first_step: multiplies the first state by alpha, as all others are.
        rho: W_res is scaled by rho / max Re(eig), as the authors do. That is not the spectral radius max `|eig|`.
        density: probability that an entry of W_res is not zero (the authors call it sparsity).
        width, bias: weights and biases are drawn from U[-width, width]; without `bias`, b_in, b_res and b_out are 0.
        seed: of a generator of its own.
        by, backward: the sweep, see `sequence`.
        steps: T, the number of columns (or rows). None: that of the images it is fitted to.

    W_in (D, n), W_res (n, n), b_in, b_res (n,), W_out (n, K) and b_out (K,) are parameters without gradient; the
    readout is NaN until `fit`. Source: landthayen2022layer. Raises LRPError for arguments out of range, and if no
    eigenvalue of W_res has a positive real part.
    """

    def __init__(
        self,
        inputs: int,
        units: int = 300,
        outputs: int = 1,
        *,
        alpha: float = 0.01,
        leaky: bool = True,
        activation: Activation = "tanh",
        first_step: bool = False,
        rho: float = 0.8,
        density: float = 0.3,
        width: float = 0.1,
        bias: bool = True,
        seed: int = 0,
        by: By = "columns",
        backward: bool = False,
        steps: int | None = None,
    ):
        super().__init__()
        if min(inputs, units, outputs) < 1 or not 0 < alpha <= 1:
            raise LRPError(f"sizes must be at least 1, alpha in (0, 1]; got {inputs=}, {units=}, {outputs=}, {alpha=}")
        self.inputs, self.units, self.outputs, self.steps = inputs, units, outputs, steps
        self.alpha, self.leaky, self.first_step, self.bias = alpha, leaky, first_step, bias
        self.activation = known("activation", activation, ACTIVATIONS)
        self.by, self.backward = known("sweep", by, SWEEPS), backward
        options = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
        shapes = (inputs, units), (units, units), (units,), (units,)
        W_in, W_res, b_in, b_res = (width * (2 * torch.rand(shape, **options) - 1) for shape in shapes)
        W_res = W_res * (torch.rand(units, units, **options) < density)
        largest = float(torch.linalg.eigvals(W_res).real.max())
        if largest <= 0:
            raise LRPError(f"no eigenvalue of W_res, {units} x {units} with {density=}, has a positive real part: take "
                           "more units, a higher density or another seed")  # fmt: skip
        self.W_in, self.W_res = self._parameter(W_in), self._parameter(W_res * (rho / largest))
        self.b_in, self.b_res = self._parameter(b_in * bias), self._parameter(b_res * bias)
        self.W_out = self._parameter(torch.full((units, outputs), torch.nan))
        self.b_out = self._parameter(torch.full((outputs,), torch.nan))

    def _parameter(self, value: Tensor) -> nn.Parameter:
        """A parameter without gradient (torch.fx traces what is computed from a parameter, not from a buffer)."""
        like = next(self.parameters(), torch.empty(0))
        return nn.Parameter(value.to(like), requires_grad=False)

    def _sweep(self, images: Tensor, steps: int):
        """The states x(1), ..., x(T), each (N, n)."""
        act, u = ACTIVATIONS[self.activation], sequence(images, by=self.by, backward=self.backward)
        W, b = torch.cat([self.W_in, self.W_res]).t(), self.b_in + self.b_res
        size = isqrt(steps)  # two small cuts per step: relevance of a slice comes back in the size of its source
        blocks = [u[:, i : i + size] for i in range(0, steps, size)]
        u = [blocks[t // size][:, t % size] for t in range(steps)]
        x = act(F.linear(u[0], self.W_in.t(), self.b_in))
        yield (x := self.alpha * x if self.first_step else x)
        for t in range(1, steps):
            a = act(F.linear(torch.cat([u[t], x], 1), W, b))
            yield (x := ((1 - self.alpha) * x if self.leaky else x) + self.alpha * a)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, K) of images. Raises InputError if they do not fit or are not finite, LRPError before `fit`."""
        if self.steps is None:
            raise LRPError("the network has neither a number of steps nor a readout: call fit(images, targets)")
        if isinstance(images, Tensor):  # and not fx's proxy of one
            self._check(images, self.steps)
            if torch.isnan(self.W_out).any():
                raise LRPError("the readout W_out is not fitted: call fit(images, targets), or load its weights")
        *_, x = self._sweep(images, self.steps)
        return F.linear(x, self.W_out.t(), self.b_out)

    @torch.no_grad()
    def states(self, images: Tensor) -> Tensor:
        """The states of all units in the order of feeding, (N, T, n), for any number of steps T."""
        return torch.stack(list(self._sweep(images, self._check(images))), 1)

    @torch.no_grad()
    def fit(self, images: Tensor, targets: Tensor, ridge: float = 0.0) -> "EchoStateNetwork":
        r"""Solve for the readout by least squares; returns the network, in eval mode.

        .. math:: [W_{out}; b_{out}] = [x(T), 1]^+ \, \text{targets}

        in float64, by the pseudo-inverse. `ridge` adds ridge `|W_out|^2` to the sum of squares. Targets (N,) or (N, K):
        numbers, or one-hot. Raises InputError for images or targets that do not fit.
        """
        steps = self._check(images)
        y = torch.as_tensor(targets, dtype=torch.float64, device=images.device)
        y = y[:, None] if y.dim() == 1 else y
        if y.shape != (len(images), self.outputs) or not torch.isfinite(y).all():
            raise InputError(f"the targets must be ({len(images)}, {self.outputs}) finite numbers, a row per image; "
                             f"their shape is {tuple(y.shape)}")  # fmt: skip
        if not ridge >= 0:
            raise LRPError(f"ridge must be at least 0, not {ridge}")
        *_, x = copy.deepcopy(self).double()._sweep(images.double(), steps)
        ones = torch.full_like(x[:, :1], float(self.bias))
        penalty = ridge**0.5 * torch.eye(self.units, self.units + 1).to(x)
        solution = torch.linalg.pinv(torch.cat([torch.cat([x, ones], 1), penalty])) @ F.pad(y, (0, 0, 0, self.units))
        self.steps = steps
        self.W_out, self.b_out = self._parameter(solution[:-1]), self._parameter(solution[-1])
        return self.eval()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Classes (N,): the sign of a single score, -1 or +1, or the index of the largest of several."""
        scores = self(images)
        return torch.where(scores[:, 0] < 0, -1, 1) if self.outputs == 1 else scores.argmax(1)

    def sided(self) -> "EchoStateNetwork":
        """A copy with two classes for the two signs of a single score: its scores are (-y, y).

        Its predicted class is the sign of y, and relevance starts as `|y|` at sign(y) W_out, so that rules among
        positive contributions treat both signs alike. Raises LRPError for several scores.
        """
        if self.outputs != 1:
            raise LRPError(f"only a single score has two sides; this network has {self.outputs}")
        other = copy.deepcopy(self)
        other.outputs = 2
        other.W_out = self._parameter(torch.cat([-self.W_out, self.W_out], 1))
        other.b_out = self._parameter(torch.cat([-self.b_out, self.b_out]))
        return other

    def _check(self, images: Tensor, steps: int | None = None) -> int:
        """Raise InputError unless these images can be fed; returns the number of steps."""
        if not isinstance(images, Tensor) or images.dim() not in (3, 4) or (images.dim() == 4 and images.shape[1] != 1):
            what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images are a tensor (N, H, W) or (N, 1, H, W), not {what}")
        values, found = images.shape[-2:] if self.by == "columns" else images.shape[:-3:-1]
        if len(images) == 0 or values != self.inputs or found == 0:
            side = "rows (H)" if self.by == "columns" else "columns (W)"
            raise InputError(f"the network reads {self.inputs} values per step, so images need as many {side}; "
                             f"their shape is {tuple(images.shape)}")  # fmt: skip
        if steps not in (None, found):
            raise InputError(f"the network was fitted to {steps} {self.by}, these images have {found}: fit it again")
        if images.dtype != self.W_in.dtype or images.device != self.W_in.device:
            raise InputError(f"the images are {images.dtype} on {images.device}, the network {self.W_in.dtype} on "
                             f"{self.W_in.device}: use images.to(network.W_in)")  # fmt: skip
        if not torch.isfinite(images).all():
            raise InputError("the images hold NaN or infinite values: set land and gaps to 0 after scaling")
        return found

    def extra_repr(self) -> str:
        """Sizes, leak rate and sweep."""
        return f"{self.inputs}, {self.units}, {self.outputs}, alpha={self.alpha}, {self.by}, steps={self.steps}"


# ---------------------------------------------------------------- rules at the leaky sum, and composites


@dataclass(frozen=True)
class Fixed(r.Rule):
    r"""A sum's relevance in fixed shares c_k, one per summand in their order, for all values: R_k = c_k R / sum c.

    Source: landthayen2022layer (V2). Conserves relevance. Raises ValueError unless all are >= 0 and one is above.
    """

    shares: tuple[float, ...]

    at = ("add",)
    one_sided = True

    def __post_init__(self):
        if not self.shares or min(self.shares) < 0 or not max(self.shares) > 0:
            raise ValueError(f"shares must be >= 0, and one of them above; got {self.shares}")

    @property
    def groups(self):
        return ((1.0, r.Group((r.Part(r.ones, r.Constant(self.shares)),))),)


class SignAware(r.Rule):
    r"""Among the contributions that have the sign of their sum: `ZPlus` for units above zero, mirrored below.

    .. math:: R_i = \sum_j \frac{(s_j x_i w_{ij})^+}{\sum_{i'} (s_j x_{i'} w_{i'j})^+} R_j, \quad
              s_j = \operatorname{sign} z_j

    The limit of `Gamma` for gamma -> infinity. Source: this project. Conserves relevance; at a unit without any
    contribution, all relevance goes to the stabiliser.
    """

    groups = ((1.0, r.POSITIVE._replace(where=1)), (1.0, r.NEGATIVE._replace(where=-1)))
    epsilon = 0.0
    sign_selective = True


def signed(epsilon: float = 0.0) -> Composite:
    """V1 (landthayen2022layer): each contribution by its value, biases excluded from denominators.

    Exact for epsilon = 0, but denominators pass through zero, so relevance is unbounded; else stabilised.
    """
    return Composite([("any", r.Epsilon(epsilon))], addition=r.Epsilon(epsilon), bias="exclude")


def fixed(model: EchoStateNetwork) -> Composite:
    """V2 (landthayen2022layer): positive contributions; at the leaky sum 1 - alpha to the old state, alpha to the new.

    Deviations: relevance starts from x(T), not a(T); the first column is included; where nothing contributes
    positively, `ZPlus` falls back. Explain `model.sided()` for maps that are positive for both signs of y. Not leaky,
    the constants are 1 and alpha, over their sum.
    """
    shares = (1 - model.alpha if model.leaky else 1.0, model.alpha)
    return Composite([("any", r.ZPlus())], addition=Fixed(shares), bias="exclude")


def proportional() -> Composite:
    """The remedy: at the leaky sum by the values of the state's sign; with `first_step=True` no bright first column."""
    return Composite([("any", r.ZPlus())], addition=SignAware(), bias="exclude")


# ---------------------------------------------------------------- along the sweep


def column_profile(R: Tensor, **sweep) -> Tensor:
    """Relevance of each step in the order of feeding: maps (N, H, W) or (N, 1, H, W) -> (N, T).

    Options are `by` and `backward`, see `sequence`.
    """
    return sequence(R, **sweep).sum(2)


def first_column_share(R: Tensor, **sweep) -> Tensor:
    """Share of the relevance in the column that was fed first, (N,); 1 / T if even. Options as in `sequence`."""
    profile = column_profile(R, **sweep)
    return profile[:, 0] / profile.sum(1)


@torch.no_grad()
def reservoir_share(model: EchoStateNetwork, images: Tensor) -> Tensor:
    r"""f, the reservoir's share of the positive contributions to a unit at steps 2, ..., T, over units: (N, T - 1).

    .. math:: f = \frac{\sum_j (x_j W_{res,ji})^+}{\sum_k (u_k W_{in,ki})^+ + \sum_j (x_j W_{res,ji})^+}

    Under `fixed` relevance decays by about 1 - alpha (1 - f) per step on the way back, not by 1 - alpha.
    """
    x, u = model.states(images)[:, :-1], sequence(images, by=model.by, backward=model.backward)[:, 1:]
    old, new = (v.clamp(min=0) @ W.clamp(min=0) + v.clamp(max=0) @ W.clamp(max=0)
                 for v, W in ((x, model.W_res), (u, model.W_in)))  # fmt: skip
    return (old / (old + new)).mean(2)
