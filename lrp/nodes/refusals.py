"""What is said where relevance cannot go: which nodes, at which lines, and the way out."""

from ..errors import UnsupportedOperation
from ..network import kinds as v
from ..network.graph import Node


def no_rule(*nodes: Node) -> UnsupportedOperation:
    """The error for relevance that would reach nodes without a rule: each with its place, and the way out."""
    if len(nodes) == 1:
        return UnsupportedOperation(f"node {nodes[0].called} {_way_out(nodes[0])}")
    kinds = {}
    for node in nodes:
        kinds.setdefault(node.op, []).append(node)
    rows = [f"* {', '.join(node.called for node in same)}: {same[0].op} {_way_out(same[0])}" for same in kinds.values()]
    return UnsupportedOperation("\n".join([f"relevance would reach {len(nodes)} nodes without a rule:", *rows]))


def _way_out(node: Node) -> str:
    if node.kind == v.PIECES:
        return f"({node.op}) gives several tensors that are used as a whole: take them out one by one, as in " + (
            "a, b = x.chunk(2, 1)"
        )
    if len(node.sources) > 1:
        names = ", ".join(f"`{source.name}`" for source in node.sources)
        return f"calls {node.op} of {names}, and no rule shares relevance among these: begin at a later node, by start="
    override = f"pass overrides={{'{node.name}': rules.Pass()}}"
    hint = f"{override} to let relevance through, or rules.Epsilon() to share it"
    return f"calls {node.op}, which has no rule: {hint}"


def no_single_value(node: Node, value) -> UnsupportedOperation:
    """The error for a node under a rule that gives several tensors."""
    return UnsupportedOperation(
        f"node {node.called} ({node.op}) gives a {type(value).__name__} of several tensors, which no rule shares: "
        "relevance must not come back to it; begin at a later node, by start="
    )
