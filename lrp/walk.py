"""The two passes: a forward pass that keeps what the rules will ask for, and the walk back over the graph."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kinds as v
from .errors import LRPError, UnsupportedOperation, warn
from .explanation import Entry
from .graph import Node
from .operators import reduce_to
from .propagate import Step, total
from .rules import Direct, Epsilon, Gamma, Pass, Rule, Split
from .splitting import gaps, spread

if TYPE_CHECKING:
    from .engine import LRP

LOCAL = (v.AVERAGE, v.MAXIMUM, v.REARRANGE)  # nodes whose own small autograd graph is kept until the walk
GENERIC = (v.UNKNOWN, v.LRN)  # nodes that a rule other than Pass treats by their local linearisation
OVERWRITING = {"relu": torch.relu_, "relu6": partial(F.hardtanh_, min_val=0.0, max_val=6.0)}  # activations in place
PASSING = (v.ACTIVATION, v.NORM, v.SCALE)


class Tape:
    """Values of the nodes during one forward pass, each kept as long as someone will ask for it."""

    def __init__(self, explainer: LRP):
        self.explainer, self.graph = explainer, explainer.graph
        self.values: dict[Node, object] = {}
        self.local: dict[Node, tuple] = {}
        self.unbiased: dict[Node, Tensor] = {}  # outputs without their bias, where rules exclude it
        self.steps: dict[Node, Step] = {}  # rules at nodes, with what they have worked out already
        self.absorb = explainer.composite.bias == "absorb"
        self.shapes: dict[Node, torch.Size] = {}
        self.uses = dict(self.graph.users)
        for node in self.graph.nodes:
            for needed in self._needed(node):
                self.uses[needed] += 1

    def _needed(self, node: Node) -> set[Node]:
        """Whose values the walk needs at this node."""
        rule = self.explainer.rules[node]
        if rule is None or isinstance(rule, Pass):
            return set()
        reads_output = isinstance(rule, (Epsilon, Gamma)) and self.absorb
        return ({node} if reads_output or node.kind == v.AVERAGE else set()) | self.graph.reads[node]

    def forward(self, x: Tensor, end: Node | None = None) -> Tensor:
        """Run the network; x (N, ...) -> output (N, K), or the value of another node, where the run ends."""
        end = end or self.graph.output
        self.uses[end] += 1
        for node in self.graph.nodes:
            self.values[node] = value = x if node.kind == v.INPUT else self._run(node)
            if isinstance(value, Tensor):
                self.shapes[node] = value.shape
                if node.carries and (value.dim() == 0 or len(value) != len(x)):
                    raise UnsupportedOperation(
                        f"node `{node.name}` has shape {tuple(value.shape)}, whose first axis is not the batch of "
                        f"{len(x)}: keep samples along the first axis throughout the network"
                    )
            for source in self.graph.reads[node]:
                self.release(source)
            if node is end:
                break
        return self.values[end]

    def _run(self, node: Node):
        if node.kind in (*v.WEIGHTED, v.BATCHNORM):
            operator = node.operator(self.values)
            if node.kind == v.DENSE and node.norm is not None and self.values[node.inputs[0]].dim() > 2:
                raise UnsupportedOperation(
                    f"BatchNorm `{node.aliases[-1]}` follows dense layer `{node.name}` on more than two axes and "
                    "cannot be folded into it: give the composite fold_batchnorm=False"
                )
            (w, b), parts = self.explainer.weights(node, operator)
            xs, rule = [self.values[node.inputs[0]]], self.explainer.rules[node]
            if rule.complete and xs[0].element_size() >= 4:  # in half precision the sum of rounded parts is too rough
                self.steps[node] = Step(rule, operator, xs, None, (w, b), parts, self.absorb, nonnegative(node))
                return self.steps[node].forward()
            if self.absorb or b is None or not isinstance(rule, (Epsilon, Gamma)):
                return operator.forward(xs, w, b)
            self.unbiased[node] = z = operator.apply(xs, w)
            return z + operator.spread(b, z)
        overwrite = OVERWRITING.get(node.op) if node.kind == v.ACTIVATION else None
        if overwrite and self._ours(node.inputs[0]):
            return overwrite(self.values[node.inputs[0]])
        rule = self.explainer.rules[node]
        generic = node.kind in GENERIC and rule is not None and not isinstance(rule, (Pass, Direct))
        if node.kind not in LOCAL and not generic:
            return node.run(self.values)
        leaves = {n: self.values[n].detach().requires_grad_() for n in node.sources}
        with torch.enable_grad():
            value = node.run({**self.values, **leaves})
        if value.requires_grad:
            self.local[node] = (list(leaves.values()), value)
        return value.detach()

    def _ours(self, node: Node) -> bool:
        """May this value be overwritten: new memory, and no one else reads it, not even through a view of it?"""
        return node.kind in (*v.WEIGHTED, v.BATCHNORM) and self.uses[node] == 1 == self.graph.users[node]

    def back(self, node: Node, R: Tensor) -> list[Tensor]:
        """Vector-Jacobian product of a local graph, for each target: (T, N, ...) -> one (T, N, ...) per source."""
        leaves, value = self.local[node]
        rows = [torch.autograd.grad(value, leaves, r, retain_graph=True, allow_unused=True) for r in R]
        shares = []
        for leaf, *g in zip(leaves, *rows, strict=True):
            if g[0] is None:
                shares.append(R.new_zeros(len(R), *leaf.shape))
            else:
                shares.append(g[0][None] if len(g) == 1 else torch.stack(g))
        return shares

    def release(self, node: Node) -> None:
        """One user less; the last one takes the value along."""
        self.uses[node] -= 1
        if self.uses[node] <= 0:
            self.values.pop(node, None)

    def done(self, node: Node) -> None:
        """The walk has passed this node."""
        for needed in self._needed(node):
            self.release(needed)
        self.local.pop(node, None)
        self.unbiased.pop(node, None)
        self.steps.pop(node, None)


class Walk:
    """The way back: relevance (T, N, ...) by node, from the output to the input.

    Several walks may use one tape, each with targets of its own; only the `last` takes along what it has passed.
    """

    def __init__(self, explainer: LRP, tape: Tape, contrast: set[Node] = frozenset(), last: bool = True):
        self.explainer, self.tape, self.last = explainer, tape, last
        self.contrast = contrast  # layers at which the same with negated weights is taken away
        self.graph, self.rules = explainer.graph, explainer.rules
        self.R: dict[Node, Tensor] = {}
        self.arrived: dict[Node, Tensor] = {}  # sum of R by node, (T, N)
        self.entries: list[Entry] = []

    def back(self, start: Node, R: Tensor, x: Tensor, wanted: set[Node]) -> tuple[Tensor, dict[Node, Tensor]]:
        """Walk from a node with relevance R to the input; returns the input's relevance and that of wanted nodes."""
        shapes = self.tape.shapes
        kept = {node: R.new_zeros(len(R), *shapes[node]) for node in wanted if node in shapes}
        self.R[start], self.arrived[start] = R, total(R)
        for node in reversed(self.graph.nodes):
            R_node = self.R.pop(node, None)
            if R_node is not None:
                if node in wanted:
                    kept[node] = R_node
                if node.kind == v.INPUT:
                    return R_node, kept
                self._visit(node, R_node)
            if self.last:
                self.tape.done(node)
        return R.new_zeros(len(R), *x.shape), kept  # relevance never reached the input

    def _visit(self, node: Node, R: Tensor) -> None:
        entry = Entry(node.name, node.kind, "", self.arrived[node], 0.0)
        rule = self.rules[node]
        if isinstance(rule, Pass):
            shares = self._pass(node, R)
        elif isinstance(rule, Direct):
            shares = [(node.inputs[0], self._direct(node, rule, R))]
        elif isinstance(rule, Split):
            shares = self._split(node, rule, R)
        elif node.kind in v.LINEAR or (node.kind in GENERIC and rule is not None):
            shares = self._share(node, rule, R, entry)
        elif node.kind in PASSING:
            shares = [(node.inputs[0], reduce_to(R, self._like(node.inputs[0])))]
        elif node.kind in LOCAL:
            shares = list(zip(node.sources, self.tape.back(node, R), strict=True))
        elif node.kind == v.PRODUCT:
            shares = self._product(node, R)
        else:
            raise no_rule(node)
        if self.explainer.composite.spread and (steps := gaps(node, self.tape.values)):
            shares = [(source, spread(share, self._read(node, source), steps)) for source, share in shares]
        entry.rule = repr(rule) if rule is not None else "Pass()" if node.kind in PASSING else node.kind
        amounts = [self.arrived[node] if share is R else total(share) for _, share in shares]
        entry.relevance_in = sum(amounts)
        if node.pads:  # what went to padded constants, it keeps like a bias
            entry.bias = entry.relevance_out - entry.relevance_in
        self.entries.append(entry)
        for (source, share), amount in zip(shares, amounts, strict=True):
            self.R[source] = self.R[source] + share if source in self.R else share
            self.arrived[source] = self.arrived[source] + amount if source in self.arrived else amount

    def _read(self, node: Node, source: Node) -> Tensor:
        """What this node read from a source."""
        return (
            self.tape.local[node][0][node.sources.index(source)]
            if node in self.tape.local
            else self.tape.values[source]
        )

    def _like(self, node: Node) -> Tensor:
        return torch.empty(self.tape.shapes[node], device="meta")

    def _share(self, node: Node, rule: Rule, R: Tensor, entry: Entry) -> list[tuple[Node, Tensor]]:
        """A rule at a linear node; at the last layer of a contrast, minus the same with negated weights."""
        step = self.tape.steps.pop(node, None) or self._step(node, rule)
        shares = step.share(R, keep=not self.last)
        relevance, entry.bias, entry.stabiliser = shares.relevance, shares.bias, shares.stabiliser
        if not self.last:
            self.tape.steps[node] = step
        if node in self.contrast:
            if not rule.sign_selective:
                raise LRPError(
                    f"Contrastive(kind=2) is identically zero under {rule!r} at layer `{node.name}`, where relevance "
                    "starts: negated weights give the same shares. Give that layer another rule, as in "
                    f"overrides={{'{node.name}': rules.ZPlus()}}"
                )
            dual = self._step(node, rule, sign=-1).share(R)
            relevance = [a - d for a, d in zip(relevance, dual.relevance, strict=True)]
            entry.bias, entry.stabiliser = entry.bias - dual.bias, entry.stabiliser - dual.stabiliser
            entry.relevance_out = entry.relevance_out * 0
        return list(zip(readable(node), relevance, strict=True))

    def _step(self, node: Node, rule: Rule, sign: int = 1) -> Step:
        """The rule at a linear node, or with sign -1 at the same node with negated weights."""
        values = self.tape.values
        operator = node.operator(values, local=lambda s: self.tape.back(node, s))
        (w, b), parts = self.explainer.weights(node, operator)
        xs = [values[n] for n in readable(node)]
        complaint = rule.complaint(xs)
        if complaint:
            warn(f"node `{node.name}`: {complaint}")
        z = values.get(node) if self.tape.absorb or b is None else self.tape.unbiased.get(node)
        if sign < 0:
            w, b, parts, z = -w, None if b is None else -b, {}, None if z is None else -z
        return Step(rule, operator, xs, z, (w, b), parts, self.tape.absorb, nonnegative(node))

    def _direct(self, node: Node, rule: Direct, R: Tensor) -> Tensor:
        """A rule that knows the layer."""
        values, source = self.tape.values, node.inputs[0]
        return rule.share(values[source], R, node.layer(values), lambda x: node.run({**values, source: x}))

    def _split(self, node: Node, rule: Split, R: Tensor) -> list[tuple[Node, Tensor]]:
        """A rule that knows it is at a sum; summands that were broadcast get the sum of their copies."""
        xs = [self.tape.values[n] for n in node.inputs]
        whole = [sign * x.expand(R.shape[1:]) for sign, x in zip(node.signs, xs, strict=True)]
        parts = rule.split(whole, R, self.graph.skips(node))
        return [(n, reduce_to(part, x)) for n, part, x in zip(node.inputs, parts, xs, strict=True)]

    def _pass(self, node: Node, R: Tensor) -> list[tuple[Node, Tensor]]:
        for source in node.inputs:
            if self.tape.shapes[source] == R.shape[1:]:
                return [(source, R)]
        raise UnsupportedOperation(
            f"Pass() at node `{node.name}` needs an input shaped like its output {tuple(R.shape[1:])}; its inputs are "
            f"{', '.join(f'{n.name} {tuple(self.tape.shapes[n])}' for n in node.inputs)}"
        )

    def _product(self, node: Node, R: Tensor) -> list[tuple[Node, Tensor]]:
        """Everything to the signal; equal halves where nothing tells signal from gate (achtibat2024attnlrp)."""
        a, b = (self._like(n) for n in node.inputs)
        gate = node.gate
        if gate is None and a.numel() != b.numel():
            gate = 0 if a.numel() < b.numel() else 1
        if gate is not None:
            signal = node.inputs[1 - gate]
            return [(signal, reduce_to(R, self._like(signal)))]
        return [(n, reduce_to(R / 2, self._like(n))) for n in node.inputs]


def readable(node: Node) -> tuple[Node, ...]:
    """The inputs of a linear node that are data, not weights."""
    return node.inputs[:1] if node.kind in v.WEIGHTED else node.inputs


def nonnegative(node: Node) -> list[bool]:
    """Which of them are known to be >= 0."""
    return [source.nonnegative for source in readable(node)]


def no_rule(node: Node) -> UnsupportedOperation:
    """The error for relevance that reaches a node nobody knows how to share it at."""
    if node.kind == v.PIECES:
        return UnsupportedOperation(
            f"node `{node.name}` ({node.op}) gives several tensors that are used as a whole: take them out one by one, "
            "as in a, b = x.chunk(2, 1)"
        )
    hint = f"pass overrides={{'{node.name}': rules.Pass()}} to let relevance through, or rules.Epsilon() to share it"
    if "softmax" in node.op:
        hint = (
            "relevance should start at the logits: take the softmax off the end of the model (seeds.Probability() "
            f"scales the logit's relevance by it), or pass overrides={{'{node.name}': rules.Pass()}}"
        )
    return UnsupportedOperation(f"node `{node.name}` calls {node.op}, which has no rule: {hint}")
