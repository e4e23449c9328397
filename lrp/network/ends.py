"""Sigmoids and softmaxes at the end of a network: what comes out are probabilities, and relevance cannot start there.

It would start as a probability, with a sign that the logit need not have: through a sigmoid, what speaks against a
class would be shown as speaking for it. Such a network is refused, or explained from its logits: `start="logits"`.
"""

from torch import Tensor

from ..errors import UnsupportedOperation
from . import kinds as v
from .graph import Graph, Node

LOGITS = "logits"
_KEEPS_ORDER = (v.REARRANGE, v.AVERAGE, v.MAXIMUM, v.PIECES)
_TURNS = (v.SCALE, v.ADD, v.BATCHNORM)  # as in 1 - p
_COPIES = {*v.KEEPS_SIGN_NAMES, "clamp", "clamp_min", "clamp_max", "clip", "float", "double", "half", "bfloat16"}


def ends(graph: Graph) -> list[Node]:
    """The sigmoids and softmaxes that the output shows, be it through views, means, sums with constants or a log."""
    return [node for node in _shown(graph, (*_KEEPS_ORDER, *_TURNS, v.ACTIVATION)) if node.op in v.ENDS]


def logits(graph: Graph, found: list[Node]) -> Node | None:
    """The node before the end, where it is the only one and the output shows it in its own order."""
    direct = [node for node in _shown(graph, _KEEPS_ORDER) if node.op in v.ENDS]
    return found[0].inputs[0] if len(found) == 1 and direct == found else None


def probabilities(output: Tensor, found: list[Node]) -> Tensor:
    """Of logits (N, K), by the network's own end; where it has none, by a softmax, or a sigmoid of one class."""
    if not found:
        return output.softmax(1) if output.shape[1] > 1 else output.sigmoid()
    p = found[0].run({found[0].inputs[0]: output})
    return p.exp() if "log" in found[0].op else p


def refused(graph: Graph, found: list[Node]) -> UnsupportedOperation:
    """The error for relevance that would start at the end."""
    starts = [f"'{LOGITS}'"] if logits(graph, found) else [f"'{node.inputs[0].name}'" for node in found]
    return UnsupportedOperation(
        f"{type(graph.model).__name__} ends in {' and '.join(f'a {node.op} (node `{node.name}`)' for node in found)}: "
        "relevance would get the sign of a probability, which is no logit's, and what speaks against a class would "
        f"seem to speak for it. It should start at the logits: pass start={' or start='.join(starts)} to explain or "
        "attribute (seeds.Probability() scales it by the probability), take the end off the model, or let relevance "
        f"through with overrides={{'{found[0].name}': rules.Pass()}}"
    )


def _shown(graph: Graph, kinds: tuple[str, ...]) -> list[Node]:
    """Nodes reached from the output through nodes of these kinds with one input, or several that are put together."""
    found, todo = [], [graph.output]
    while todo:
        node = todo.pop()
        if node not in found:
            found.append(node)
            through = node.kind in kinds or node.op in _COPIES or node.op == "log"
            several = node.kind == v.ADD and len(node.inputs) > 1
            todo += node.inputs if through and not several and node.op not in v.ENDS else ()
    return found
