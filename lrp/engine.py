"""The engine: from a model, a composite and an input to an explanation whose ledger balances.

Check, plan, forward, seed, back, account: `LRP.explain` reads in this order, and each word is a file or a function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from . import checks, seeds
from .composites import Composite, EpsilonPlus
from .errors import LRPError
from .explanation import Explanation
from .network import layout
from .network.graph import Node
from .nodes.amounts import total
from .plan import Plan
from .plans import Plans
from .seeds import Seed
from .walk import back, forward

Target = int | Tensor | None


class LRP:
    """Layer-wise relevance propagation for a model and a composite.

    The model is captured once and only read. It may be edited between calls: when weights change, those that a rule
    modified are made anew; when modules, their attributes, parameters or hooks do, the model is captured anew.

    Three edits are not noticed: fewer than 4096 values in a row, of a tensor with more than 4 million, written through
    `.data` or NumPy; what forward reads from elsewhere than the modules' attributes and theirs (globals, closures,
    objects in objects, arrays of NumPy); attributes that forward itself rewrites. Call `refresh` after these.

    Forward hooks are not explained: a model in which one changes the output is refused. Autocast is turned off, around
    the model and in its forward, since shares in half precision do not add up.

    Args:
        model: maps a tensor (N, ...), or several, to an output (N, K); in eval mode. Of a model in a wrapper
            (DataParallel, DistributedDataParallel, AveragedModel, torch.compile's), the model inside is explained.
        composite: which rule where (default `composites.EpsilonPlus()`).
        plan: the plan of another explainer of the same model, instead of a composite; saves the capture.

    Raises UnsupportedOperation if relevance would reach an operation without a rule, InputError for a model in training
    mode. A model that asks for shapes, or takes several inputs, is traced at its first input: `explain` then raises
    these, and CaptureError where no graph can be made, or InputError for weights that are not finite.

    >>> explainer = LRP(nn.Sequential(nn.Linear(2, 2, bias=False)).eval(), EpsilonPlus())
    >>> explainer.attribute(torch.ones(1, 2), target=0).shape
    torch.Size([1, 2])
    """

    multiplies_by_inputs = True  # what captum's NoiseTunnel asks of a method

    def __init__(self, model: nn.Module, composite: Composite | None = None, *, plan: Plan | None = None):
        self.model = model
        self.composite = composite or getattr(plan, "composite", None) or EpsilonPlus()
        if not isinstance(self.composite, Composite):
            raise LRPError(f"{self.composite!r} is no composite: make one, as in lrp.composites.EpsilonPlus()")
        if plan and not isinstance(plan, Plan):
            raise LRPError(f"{plan!r} is no plan: take that of another explainer, as in LRP(model, plan=first.plan)")
        if plan and plan.composite is not self.composite:
            raise LRPError("this plan has a composite of its own: leave the argument `composite` out")
        if plan and plan.home is None:
            raise LRPError("this plan belongs to no explainer: take that of one, as in LRP(model, plan=first.plan)")
        model = checks.inner(model)
        checks.capturable(model)
        checks.mode(model)
        self.plans = plan.home if plan else Plans(model, self.composite)
        checks.same_model(self.plans.model, model)

    def __getstate__(self) -> dict:
        """For copies and files: all but the plans, which are made anew from the model there."""
        return {name: value for name, value in vars(self).items() if name != "plans"}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["model"], state["composite"])

    def refresh(self) -> None:
        """Capture the model anew, after an edit that is not noticed by itself."""
        self.plans.renew(checks.inner(self.model))

    plan = property(lambda self: self.plans.current, doc="Which rule and step at which node, for the last input.")
    graph = property(lambda self: self.plan.graph, doc="The network as nodes.")
    rules = property(lambda self: self.plan.rules, doc="The rule of every node.")
    forward_func = property(lambda self: self.model, doc="The model, under the name captum uses.")

    def has_convergence_delta(self) -> bool:
        """captum's question; the ledger answers it better."""
        return False

    @torch.no_grad()
    def attribute(self, x: Tensor, target=None, seed: Seed | Tensor | None = None, start: str | None = None) -> Tensor:
        """Relevance of every input value: a tensor shaped like x, or (T, N, ...) for a list of T targets.

        captum's calling convention; see `explain` for the arguments. A tuple of inputs gives a tuple back.
        """
        return self.explain(x, target, seed, start=start).relevance

    @torch.no_grad()
    def explain(
        self,
        x: Tensor | tuple[Tensor, ...],
        target: Target | Sequence[Target] = None,
        seed: Seed | Tensor | None = None,
        layers: Sequence[str] = (),
        start: str | None = None,
    ) -> Explanation:
        """Relevance of x with its output, its ledger and, on demand, the relevance at named modules.

        Args:
            x: input (N, ...), in the model's dtype and on its device; a tuple for a model of several inputs, whose
                relevance is a tuple, too. Inputs that hold no floats (masks, indices) are constants: their relevance
                is zero, and what they keep stands as bias in the row of the node that reads them.
            target: None for the predicted class, an int for all samples, a LongTensor (N,) for one class per
                sample, or a list of T of these: T targets from one forward pass.
            seed: where relevance starts (default `seeds.Logit()`), or a tensor shaped like the output (N, K),
                or (T, N, K), which then is the relevance at the output; `target` is not used in that case.
            layers: names of modules whose output relevance is wanted.
            start: "logits", where the network ends in a sigmoid or softmax: relevance then starts before it, which
                is where any other network ends anyway. Or the name of a hidden module: relevance then starts at its
                output, which is `output`, and a target is one of its units.
                Where that output is (N, C, H, W), the target c is a whole channel and the tuple (c, y, x) one unit
                of it; several targets are a list.

        Raises InputError, TargetError or UnsupportedOperation, each naming the thing and the way out.
        """
        xs = x if isinstance(x, tuple) else (x,)
        self._follow()
        checks.inputs(xs, self.plans.model)
        with _exact(xs) as xs:
            plan = self.plans.ready(xs)
            end, wanted = self._named(plan, layers, start)
            run = forward(plan, plan.laid(xs), end)
            begin = seeds.begin(run.output, target, seed, self.model, start, plan.gives_sigmoids(end))
            contrast = plan.graph.feeding(end) if begin.opposite else set()
            found = back(run, begin.R, set(wanted.values()), contrast)
        found.relevance = [layout.as_given(R, x) for R, x in zip(found.relevance, xs, strict=True)]
        found.layers = {node: layout.as_given(R, xs[0]) for node, R in found.layers.items()}
        e = self._account(begin, layout.as_given(run.output, xs[0]), found, wanted)
        if not isinstance(x, tuple):
            e.relevance = e.relevance[0]
        return e

    def _follow(self) -> None:
        """Make the plans anew if the model's structure was edited, or another stands in its wrapper."""
        model = checks.inner(self.model)
        checks.mode(model)
        if model is not self.model and model is not self.plans.model:
            self.refresh()
        self.plans.follow(model)

    @staticmethod
    def _named(plan: Plan, layers: Sequence[str], start: str | None) -> tuple[Node, dict[str, Node]]:
        """The node where relevance starts, and those whose relevance is wanted."""
        names = [layers] if isinstance(layers, str) else layers
        return plan.start(start), {name: plan.graph.find(name) for name in names}

    def _account(self, begin, output: Tensor, found, wanted: dict[str, Node]) -> Explanation:
        """The explanation, audited; its relevance is a tuple, one for each input."""
        started = total(begin.R)
        e = Explanation(
            relevance=tuple(map(begin.finish, found.relevance)),
            output=output,
            target=begin.target,
            layers={name: found.layers[node] for name, node in wanted.items() if node in found.layers},
            rows=found.rows,
            seed=started * 0 if begin.opposite else started,  # a contrast takes away as much as it gives
            received=sum(map(total, found.relevance)),
            magnitude=total(begin.R.abs()),
        )
        e.audit(output.dtype)
        if begin.single:
            e.relevance, e.layers = (
                tuple(R[0] for R in e.relevance),
                {name: layer[0] for name, layer in e.layers.items()},
            )
        return e


@contextmanager
def _exact(xs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The inputs as ordinary tensors, and arithmetic in which shares add up: no inference mode, autocast or TF32."""
    xs = tuple(x.clone() if x.is_inference() else x for x in xs)
    with torch.inference_mode(False), torch.no_grad(), full_precision(xs[0]), checks.no_autocast():
        yield xs


def full_precision(x: Tensor):
    """A context without TF32 in convolutions."""
    if not x.is_cuda:
        return nullcontext()
    c = torch.backends.cudnn
    return c.flags(enabled=c.enabled, benchmark=c.benchmark, deterministic=c.deterministic, allow_tf32=False)


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
