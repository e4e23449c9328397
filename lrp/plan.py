"""Which step at which node: a table by kind and rule, and a plan that is chosen and checked once, with the weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from . import checks
from .errors import LRPError
from .network import ends, layout
from .network import kinds as v
from .network.graph import Graph, Node, reachable
from .network.samples import Samples
from .nodes import products, steps
from .nodes.propagate import reads_output
from .nodes.refusals import no_rule
from .rules import Adjoint, Own, Pass, Rule
from .splitting import Told, spreading
from .walk import forward


class At(NamedTuple):
    """What stands at nodes of a kind: their own rule (None: the composite's list says), and steps."""

    own: Rule | None
    step: type[steps.Step]
    adjoint: type[steps.Step]
    ruled: type[steps.Step] | None = None  # under a rule with groups, where such a rule has a meaning


AT = {
    **dict.fromkeys((v.CONVOLUTION, v.DENSE, v.BATCHNORM, v.ADD), At(None, steps.Ruled, steps.Linear, steps.Ruled)),
    **dict.fromkeys((v.AVERAGE, v.LRN), At(None, steps.RuledLocal, steps.Local, steps.RuledLocal)),
    **dict.fromkeys((v.ACTIVATION, v.SCALE), At(Pass(), steps.Through, steps.Local)),
    v.NORM: At(None, steps.Through, steps.Local, steps.RuledNorm),
    v.MATMUL: At(None, products.Matmul, steps.Local),
    v.SOFTMAX: At(Own(v.SOFTMAX), steps.Refused, steps.Local, steps.RuledLocal),
    v.MAXIMUM: At(Own(v.MAXIMUM), steps.Local, steps.Local),
    v.REARRANGE: At(Own(v.REARRANGE), steps.Local, steps.Local),
    v.PRODUCT: At(Own(v.PRODUCT), products.Gate, steps.Local),
    v.UNKNOWN: At(Own(v.UNKNOWN), steps.Refused, steps.Local, steps.RuledLocal),
    v.PIECES: At(Own(v.PIECES), steps.Refused, steps.Refused),
}


def choose(node: Node, rule: Rule) -> type[steps.Step]:
    """The step for a rule at a node; raises LRPError where the rule has no meaning."""
    at = AT[node.kind]
    if rule.at and node.kind not in rule.at:
        raise LRPError(f"{rule!r} is a rule for {' and '.join(rule.at)}; `{node.name}` is {node.kind}")
    if isinstance(rule, Own):
        return at.step
    if isinstance(rule, Pass | Told):
        return steps.Through if isinstance(rule, Pass) else steps.Say
    if isinstance(rule, Adjoint):
        return rule.step or at.adjoint
    if rule.at:
        return {v.SOFTMAX: products.Softmax}.get(node.kind, at.step)
    if at.ruled is steps.RuledNorm and node.op in v.UNCENTRED:  # a scale, which no rule tells from the identity
        return steps.Through
    if at.ruled:
        return at.ruled
    raise LRPError(f"node `{node.name}` ({node.kind}) hands relevance on as it is; {rule!r} has no meaning there")


def add_kind(kind: str, step: type[steps.Step], names: str = "", modules: Iterable[type[nn.Module]] = ()) -> None:
    """Teach the package a kind of node, from the next capture on: `step` stands at torch functions of these names
    (separated by spaces) and at modules of these types.

    Raises TypeError for a step without `back`, ValueError for a kind or a function that is taken.
    """
    if not (isinstance(step, type) and issubclass(step, steps.Step)) or step.back is steps.Step.back:
        raise TypeError(f"{step!r} is no step: derive a class from lrp.nodes.steps.Step and define back(self, R, last)")
    words, modules = str(names).split(), tuple(modules)
    if not (isinstance(kind, str) and isinstance(names, str) and all(isinstance(m, type) for m in modules)):
        raise TypeError("kind is a word, names are words in one string, and modules are classes of modules")
    if taken := {kind} & {*AT, v.CONSTANT, v.INPUT, "any", "first", "linear"} or set(words) & v.KIND_OF_NAME.keys():
        raise ValueError(f"{', '.join(sorted(taken))}: there is such a kind already, or a kind of such functions")
    AT[kind] = At(Own(kind), step, step)
    v.KIND_OF_NAME.update(dict.fromkeys(words, kind))
    v.REGISTERED.update(dict.fromkeys(modules, kind))


class Plan:
    """The rule and the step of every node that carries relevance.

    `rules` holds the rule of each node. Weights that a rule modifies are stored between calls, and made anew when a
    parameter of the model changes.

    Raises LRPError for rules and overrides without a meaning, and UnsupportedOperation where relevance would reach a
    node without a rule.
    """

    def __init__(self, graph: Graph, composite):
        self.graph, self.composite = graph, composite
        carrying = [node for node in graph.nodes if node.carries and node not in graph.inputs]
        self.rules: dict[Node, Rule] = {node: self._rule(node) for node in carrying}
        self._steps = {node: self._step(node) for node in carrying}
        self.overwriting = {node for node in carrying if self._may_overwrite(node)}
        self._check_overrides()
        self.ends = [node for node in ends.ends(graph) if not self._overridden(node)]
        self._check_reach()
        self.home = None  # the `lrp.plans.Plans` that made it
        self.fast = layout.gains(graph)
        self._seen: set = set()  # kinds of input for which graph and model were compared
        self._reach: dict[Node, set[Node]] = {}
        self._samples: dict = {}  # where the samples are, by kind of input and number of samples
        self._weights: dict[tuple[object, int | None], tuple[tuple, dict]] = {}

    def step(self, node: Node) -> steps.Step:
        """A new step at this node, for one input."""
        return self._steps[node](self, node)

    def forget(self) -> None:
        """The model's numbers have changed: weights are to be modified anew, graph and model to be compared."""
        self._weights, self._seen = {}, set()

    def ready(self, xs: tuple[Tensor, ...], hooked: list[str] = ()) -> Plan:
        """Compare graph and model on a new kind of input, or, for a model with hooks, on every input.

        Raises InputError for weights that are not finite, CaptureError where the graph does not reproduce the model.
        """
        model = self.graph.model
        if not self._seen:
            checks.finite_weights(model)
        kind = checks.kind(xs), len(xs[0]) if self.graph.recorded else None
        if hooked or kind not in self._seen:
            self._compare(checks.run(model, *xs), xs, hooked)
            self._seen.add(kind)
            if self.home:
                self.home.watch.note()
        return self

    def _compare(self, expected: Tensor, xs: tuple[Tensor, ...], hooked: list[str]) -> None:
        """Does the graph give what the model gives? It is asked in the fast layout, and if need be in the usual one."""
        given = self.laid(xs)
        try:
            checks.same(expected, forward(self, given).output, self.graph.model, xs, hooked)
        except LRPError:
            if all(one is other for one, other in zip(given, xs, strict=True)):
                raise
            checks.same(expected, forward(self, xs).output, self.graph.model, xs, hooked)
            self.fast = False  # only if the layout was to blame, not the input

    def laid(self, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs in the layout in which the walk is faster, where there is one."""
        return layout.side_by_side(xs) if self.fast else xs

    def samples_of(self, xs: tuple[Tensor, ...]) -> dict[Node, Samples] | None:
        """Where the samples are in the values of nodes that do not have them on the first axis; None: not yet known."""
        kind = checks.kind(xs)
        return self._samples.get((kind, len(xs[0])), self._samples.get((kind, None)))

    def remember_samples(self, xs: tuple[Tensor, ...], found: dict[Node, Samples]) -> None:
        """Store what `samples_of` gives; where all are on the first axis, it holds for any number of them."""
        self._samples[checks.kind(xs), len(xs[0]) if found or len(xs[0]) == 1 else None] = found

    def reach(self, end: Node) -> set[Node]:
        """The nodes that relevance from this one may reach: the others need no step."""
        if end not in self._reach:
            ways = {n: step.possible(n, self.rules[n]) for n, step in self._steps.items()}
            self._reach[end] = reachable(end, lambda node: ways.get(node, ())) - set(self.graph.inputs)
        return self._reach[end]

    def start(self, name: str | None) -> Node:
        """The node where relevance starts: the output, the logits behind a sigmoid or softmax, or the named one.

        Raises UnsupportedOperation for an output that is no logits, InputError for a name that is not known.
        """
        if name not in (None, ends.LOGITS) or name in self.graph.names or name in self.graph.modules:
            return self.graph.find(name)
        if not self.ends:
            return self.graph.output
        before = ends.logits(self.graph, self.ends)
        if name is None or before is None:
            raise ends.refused(self.graph, self.ends)
        return before

    def gives_sigmoids(self, node: Node) -> bool:
        """Is the network's output the sigmoid of this node?"""
        return any(end.op in v.SIGMOIDS and end.inputs[0] is node for end in self.ends)

    def weights(self, node: Node, operator) -> tuple[tuple, dict]:
        """Weight and bias of a node and the parts made of them, stored between calls where that is safe."""
        if not (operator.cacheable and node.fixed):
            return operator.weights(), {}
        key = node.weights, operator.axes
        if key not in self._weights:
            self._weights[key] = operator.weights(), {}
        return self._weights[key]

    def _rule(self, node: Node) -> Rule:
        rule = self.composite.rule(node, self.graph.first) or AT[node.kind].own
        if rule is None:
            raise LRPError(
                f"the composite has no rule for node `{node.name}` of kind {node.kind!r}: add one, as in "
                f"rules.append(('any', rules.Epsilon()))\n{self.composite}"
            )
        return rule

    def _step(self, node: Node) -> type[steps.Step]:
        chosen = choose(node, self.rules[node])
        if chosen.back is steps.Step.back:
            raise LRPError(f"the step {chosen.__name__} at `{node.name}` has no `back`: define back(self, R, last)")
        return spreading(chosen) if self.composite.spread else chosen

    def _may_overwrite(self, node: Node) -> bool:
        """May this activation write over its source? Only if no one else ever reads that, not even through a view."""
        if not issubclass(self._steps[node], steps.Through) or not steps.may_overwrite(node):
            return False
        (source,) = node.inputs
        return self.graph.users[source] == 1 and not reads_output(self.rules[source])

    def _overridden(self, node: Node) -> bool:
        return any(self.composite.names(pattern, node) for pattern in self.composite.overrides)

    def _check_overrides(self) -> None:
        for pattern in self.composite.overrides:
            if not any(self.composite.names(pattern, node) for node in self.graph.nodes):
                near = difflib.get_close_matches(pattern, self.graph.names, n=5, cutoff=0.3)
                raise LRPError(
                    f"the override {pattern!r} matches no node of {type(self.graph.model).__name__}"
                    + (f"; similar names: {', '.join(near)}" if near else "")
                )

    def _check_reach(self) -> None:
        """Complain now, not after a forward pass, about a node without a rule that relevance would reach."""
        ways = {node: step.reached(node, self.rules[node]) for node, step in self._steps.items()}
        starts = [end.inputs[0] for end in self.ends] or [self.graph.output]
        seen = set().union(*(reachable(start, lambda node: ways.get(node, ())) for start in starts))
        blocked = [node for node in self.rules if node in seen and issubclass(self._steps[node], steps.Refused)]
        if blocked:
            raise no_rule(*blocked)
