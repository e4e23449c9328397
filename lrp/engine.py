"""The engine: from a model, a composite and an input to an explanation whose books balance."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from . import checks
from . import kinds as v
from .composites import Composite, EpsilonPlus
from .errors import InputError, LRPError, warn
from .explanation import Entry, Explanation
from .graph import Node
from .propagate import total
from .rules import Pass, Rule
from .seeds import Logit, Seed
from .tracing import capture
from .walk import Tape, Walk, no_rule

Target = int | Tensor | None
BLOCK = {"cpu": 2**22, "cuda": 2**27}  # values of the largest node times targets that one walk carries at most


class LRP:
    """Layer-wise relevance propagation for a model and a composite.

    The model is captured once and only read. Its parameters may change between calls: modified weights are kept
    in the explainer and renewed when they do.

    Args:
        model: maps one tensor (N, ...) to an output (N, K); in eval mode.
        composite: which rule where (default `composites.EpsilonPlus()`).

    Raises CaptureError if the model cannot be traced, UnsupportedOperation if relevance would reach an operation
    without a rule, InputError for a model in training mode or with weights that are not finite.

        >>> explainer = LRP(nn.Sequential(nn.Linear(2, 2, bias=False)).eval(), EpsilonPlus())
        >>> explainer.attribute(torch.ones(1, 2), target=0).shape
        torch.Size([1, 2])
    """

    multiplies_by_inputs = True  # what captum's NoiseTunnel asks of a method

    def __init__(self, model: nn.Module, composite: Composite | None = None):
        self.model = model
        self.composite = EpsilonPlus() if composite is None else composite
        if not isinstance(self.composite, Composite):
            raise LRPError(f"{self.composite!r} is no composite: make one, as in lrp.composites.EpsilonPlus()")
        checks.mode(model)
        self.graph = capture(model, self.composite.fold_batchnorm)
        self.rules = {node: self._rule(node) for node in self.graph.nodes}
        self._require_rules()
        self._state = None  # fingerprint of the weights that the cache belongs to
        self._seen: set = set()  # kinds of input for which graph and model were compared
        self._weights: dict[Node, tuple] = {}
        self._parts: dict[Node, dict] = {}

    @property
    def forward_func(self) -> nn.Module:
        """The model, under the name captum uses."""
        return self.model

    def has_convergence_delta(self) -> bool:
        """captum's question; the ledger answers it better."""
        return False

    @torch.no_grad()
    def attribute(self, x: Tensor, target=None, seed: Seed | Tensor | None = None, start: str | None = None) -> Tensor:
        """Relevance of every input value: a tensor shaped like x, or (T, N, ...) for a list of T targets.

        captum's calling convention; see `explain` for the arguments. A tuple with one tensor gives one back.
        """
        if isinstance(x, tuple) and len(x) == 1:
            return (self.explain(x[0], target, seed, start=start).relevance,)
        return self.explain(x, target, seed, start=start).relevance

    @torch.no_grad()
    def explain(
        self,
        x: Tensor,
        target: Target | Sequence[Target] = None,
        seed: Seed | Tensor | None = None,
        layers: Sequence[str] = (),
        start: str | None = None,
    ) -> Explanation:
        """Relevance of x with its output, its ledger and, on demand, the relevance at named modules.

        Args:
            x: input (N, ...), in the model's dtype and on its device.
            target: None for the predicted class, an int for all samples, a LongTensor (N,) for one class per
                sample, or a list of T of these: T targets from one forward pass.
            seed: where relevance starts (default `seeds.Logit()`), or a tensor shaped like the output (N, K),
                or (T, N, K), which then is the relevance at the output; `target` is not used in that case.
            layers: names of modules whose output relevance is wanted.
            start: name of a hidden module; relevance then starts at its output, and a target is one of its units.
                Where that output is (N, C, H, W), the target c is a whole channel and the tuple (c, y, x) one unit
                of it; several targets are a list.

        Raises InputError, TargetError or UnsupportedOperation, each naming the thing and the way out.
        """
        checks.mode(self.model)
        checks.tensor(x, self.model)
        wanted = {name: self.graph.find(name) for name in ([layers] if isinstance(layers, str) else layers)}
        x = x.clone() if x.is_inference() else x
        with torch.inference_mode(False), torch.no_grad(), _full_precision(x):
            self._refresh(x)
            tape, node = Tape(self), self.graph.output if start is None else self.graph.find(start)
            output = tape.forward(x, node)
            R, target, single = self._start(output, target, seed, hidden=start)
            contrast = self.graph.feeding(node) if isinstance(seed, Seed) and seed.negate_last else set()
            relevance, kept, entries = self._walk(tape, node, R, x, set(wanted.values()), contrast)
        started = total(R)
        e = Explanation(
            relevance=seed.finish(relevance) if isinstance(seed, Seed) else relevance,
            output=output,
            target=target,
            layers={name: kept[node] for name, node in wanted.items() if node in kept},
            entries=entries,
            seed=started * 0 if contrast else started,  # a contrast takes away as much as it gives
            received=total(relevance),
            magnitude=total(R.abs()),
        )
        self._audit(e, x)
        if single:
            e.relevance = e.relevance[0]
            e.layers = {name: layer[0] for name, layer in e.layers.items()}
        return e

    def _walk(self, tape: Tape, start: Node, R: Tensor, x: Tensor, wanted: set[Node], contrast: set[Node]) -> tuple:
        """Relevance of the input and of the wanted nodes, and the books, from as many walks as memory asks for."""
        largest = max(shape.numel() for shape in tape.shapes.values())
        blocks = R.split(max(1, BLOCK.get(x.device.type, BLOCK["cuda"]) // max(1, largest)))
        relevance, kept, entries = [], [], []
        for i, R_block in enumerate(blocks, 1):
            walk = Walk(self, tape, contrast, last=i == len(blocks))
            arrived, layers = walk.back(start, R_block, x, wanted)
            relevance.append(arrived), kept.append(layers), entries.append(walk.entries)
        if len(blocks) == 1:
            return relevance[0], kept[0], entries[0]
        layers = {node: torch.cat([k[node] for k in kept]) for node in kept[0]}
        return torch.cat(relevance), layers, [Entry.joined(books) for books in zip(*entries, strict=True)]

    def _rule(self, node: Node) -> Rule | None:
        if node.kind in (*v.LINEAR, v.LRN):
            rule = self.composite.rule(node, self.graph.first)
            if rule is None:
                raise LRPError(
                    f"the composite has no rule for node `{node.name}` of kind {node.kind!r}: add one, as in "
                    f"rules.append(('any', rules.Epsilon()))\n{self.composite}"
                )
            if rule.at and node.kind not in rule.at:
                raise LRPError(f"{rule!r} is a rule for {' and '.join(rule.at)}; `{node.name}` is {node.kind}")
            return rule
        rule = self.composite.override(node) or self.composite.rule(node, self.graph.first)
        if rule is not None and node.kind not in rule.at and node.kind != v.UNKNOWN and not isinstance(rule, Pass):
            raise LRPError(
                f"node `{node.name}` ({node.kind}) hands relevance on as it is; {rule!r} has no meaning there"
            )
        return rule

    def _require_rules(self) -> None:
        """Complain at once, not after a forward pass: overrides that mean nothing, operations without a rule."""
        for pattern in self.composite.overrides:
            if not any(self.composite.names(pattern, node) for node in self.graph.nodes):
                near = difflib.get_close_matches(pattern, self.graph.names, n=5, cutoff=0.3)
                raise LRPError(
                    f"the override {pattern!r} matches no node of {type(self.model).__name__}"
                    + (f"; similar names: {', '.join(near)}" if near else "")
                )
        todo, seen = [self.graph.output], set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.kind != v.PRODUCT:
                todo += node.inputs
            elif node.gate is not None:
                todo.append(node.inputs[1 - node.gate])
        for node in self.graph.nodes:
            if node in seen and node.kind in (v.UNKNOWN, v.PIECES) and self.rules[node] is None:
                raise no_rule(node)

    def _refresh(self, x: Tensor) -> None:
        """Forget modified weights if the model changed, and compare graph and model on a new kind of input."""
        state = checks.fingerprint(self.model)
        if state != self._state:
            checks.finite_weights(self.model)
            self._weights.clear(), self._parts.clear(), self._seen.clear()
            self._state = state
        kind = (tuple(x.shape[1:]), x.dtype, x.device)
        if kind not in self._seen:
            expected = checks.run(self.model, x)
            checks.same_output(expected, Tape(self).forward(x), self.model)
            self._seen.add(kind)

    def weights(self, node: Node, operator) -> tuple[tuple, dict]:
        """Weight and bias of a node and the parts made of them, kept between calls where they can be."""
        if not (operator.cacheable and node.module is not None):
            return operator.weights(), {}
        if node not in self._weights:
            self._weights[node], self._parts[node] = operator.weights(), {}
        return self._weights[node], self._parts[node]

    def _start(self, output: Tensor, target, seed, hidden: str | None) -> tuple[Tensor, Tensor | None, bool]:
        """Relevance where it starts (T, N, K), the targets, and whether one map per sample was asked for."""
        if isinstance(seed, Tensor):
            checks.seed(seed, output)
            single = seed.dim() == output.dim()
            return (seed[None] if single else seed).to(output), None, single
        if seed is not None and not isinstance(seed, Seed):
            raise InputError(f"{seed!r} is no seed: make one, as in seeds.Logit(), or hand over a tensor")
        seed = Logit() if seed is None else seed
        if hidden is not None and output.dim() > 2:
            return self._start_in_space(output, target, seed, hidden)
        checks.logits(output, self.model)
        targets, single = checks.targets(target, output)
        return seed(output, targets), targets[0] if single else targets, single

    def _start_in_space(self, output: Tensor, target, seed: Seed, hidden: str) -> tuple[Tensor, Tensor | None, bool]:
        """The same at a hidden (N, C, ...): every place is a sample of its own, a unit one place of a channel."""
        single = not isinstance(target, list)
        places = output.movedim(1, -1)
        rows = []
        for one in [target] if single else target:
            channel, *place = checks.unit(one, output, hidden)
            channels = torch.full((1, places[..., 0].numel()), channel, device=output.device)
            R = seed(places.flatten(0, -2), channels).view(places.shape).movedim(-1, 1)
            if place:
                here = (slice(None), slice(None), *place)
                R, whole = torch.zeros_like(R), R
                R[here] = whole[here]
            rows.append(R)
        return torch.stack(rows), None, single

    def _audit(self, e: Explanation, x: Tensor) -> None:
        """Say so when a result is not finite (an error) or the books do not balance (a warning)."""
        imbalance = e.imbalance
        if not (torch.isfinite(e.relevance).all() and math.isfinite(imbalance)):
            first = next((entry.name for entry in e.entries if not entry.finite), "input")
            raise LRPError(
                f"relevance is not finite from node `{first}` on: give its layer a stabler rule (a larger epsilon, "
                f"ZPlus, or Gamma) by overrides={{'{first}': ...}}; or the values there are too large or too small for "
                f"{x.dtype}, so scale the input, or use {'float32' if x.element_size() < 4 else 'float64'}"
            )
        if imbalance > checks.TOLERANCE[x.dtype]:
            lost = max(e.entries, key=lambda entry: float(e.loss(entry).max()))
            where = f"most of it at node `{lost.name}` ({lost.rule})"
            if 2 * float(e.loss(lost).max()) < float(e.as_share(e.missing).max()):
                signed = max(e.entries, key=lambda entry: float(e.as_share(entry.stabiliser).max()))
                where = (
                    "at no single node: parts of opposite sign, far larger than the seed, cancel where paths meet, as "
                    f"behind node `{signed.name}` ({signed.rule}); a rule without signs there keeps it"
                )
            warn(f"{100 * imbalance:.2g} % of the relevance is unaccounted for, {where}; see .ledger")


def _full_precision(x: Tensor):
    """No TF32 in convolutions while explaining: shares must add up."""
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
