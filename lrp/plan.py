"""Which step at which node: chosen and checked once, with the weights that the rules need."""

from __future__ import annotations

import difflib

from torch import Tensor

from . import checks, steps
from .errors import LRPError
from .graph import Graph, Node
from .rules import Rule
from .walk import forward


class Plan:
    """The rule and the step of every node that carries relevance.

    `rules` holds the rule of each node. Weights that a rule modifies are stored between calls, and made anew when a
    parameter of the model changes.

    Raises LRPError for rules and overrides without a meaning, and UnsupportedOperation where relevance would reach a
    node without a rule.
    """

    def __init__(self, graph: Graph, composite):
        self.graph, self.composite = graph, composite
        carrying = [node for node in graph.nodes if node.carries and node is not graph.input]
        self.rules: dict[Node, Rule] = {node: self._rule(node) for node in carrying}
        self._steps = {node: self._step(node) for node in carrying}
        self.overwriting = {node for node in carrying if self._may_overwrite(node)}
        self._check_overrides()
        self._check_reach()
        self._state = None  # fingerprint of the weights that the stores below belong to
        self._seen: set = set()  # kinds of input for which graph and model were compared
        self._weights: dict[Node, tuple] = {}
        self._parts: dict[Node, dict] = {}

    def step(self, node: Node) -> steps.Step:
        """A new step at this node, for one input."""
        chosen = self._steps[node]
        return (steps.spreading(chosen) if self.composite.spread else chosen)(self, node)

    def ready(self, x: Tensor, model) -> Plan:
        """Forget modified weights if the model has changed, and compare graph and model on a new kind of input.

        Raises InputError for a plan of another model, or for weights that are not finite; CaptureError where the graph
        does not reproduce the model.
        """
        checks.same_model(self.graph.model, model)
        state = checks.fingerprint(model)
        if state != self._state:
            checks.finite_weights(model)
            self._weights.clear()
            self._parts.clear()
            self._seen.clear()
            self._state = state
        kind = (tuple(x.shape[1:]), x.dtype, x.device)
        if kind not in self._seen:
            checks.same_output(checks.run(model, x), forward(self, x).output, model)
            self._seen.add(kind)
        return self

    def weights(self, node: Node, operator) -> tuple[tuple, dict]:
        """Weight and bias of a node and the parts made of them, stored between calls where that is safe."""
        if not (operator.cacheable and node.module is not None):
            return operator.weights(), {}
        if node not in self._weights:
            self._weights[node], self._parts[node] = operator.weights(), {}
        return self._weights[node], self._parts[node]

    def _rule(self, node: Node) -> Rule:
        rule = self.composite.rule(node, self.graph.first) or steps.AT[node.kind].own
        if rule is None:
            raise LRPError(
                f"the composite has no rule for node `{node.name}` of kind {node.kind!r}: add one, as in "
                f"rules.append(('any', rules.Epsilon()))\n{self.composite}"
            )
        return rule

    def _step(self, node: Node) -> type[steps.Step]:
        chosen = steps.choose(node, self.rules[node])
        if chosen.back is steps.Step.back:
            raise LRPError(f"the step {chosen.__name__} at `{node.name}` has no `back`: define back(self, R, last)")
        return chosen

    def _may_overwrite(self, node: Node) -> bool:
        """May this activation write over its source? Only if no one else ever reads that, not even through a view."""
        if self._steps[node] is not steps.Through or not steps.may_overwrite(node):
            return False
        (source,) = node.inputs
        return self.graph.users[source] == 1 and not steps.reads_output(self.rules[source])

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
        todo, seen = [self.graph.output], {self.graph.input}
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += self._steps[node].reached(node)
        for node in self.rules:
            if node in seen and self._steps[node] is steps.Refused:
                raise steps.no_rule(node)
