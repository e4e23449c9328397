"""How one call of a network becomes several of our nodes: what `opened` and `recurrent` write with."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import nn

from ..errors import UnsupportedOperation
from . import kinds as v
from .gates import measure
from .graph import Node
from .relating import related


class Do:
    """Makes the nodes of one call of the network: `do("matmul", a, b)` is the node of torch.matmul(a, b)."""

    def __init__(self, name: str, place: str, unique: Callable[[str], str]):
        self.name, self.place, self.unique = name, place, unique
        self.made: list[Node] = []
        self.parameters: dict[tuple[nn.Module, str], Node] = {}

    def __call__(self, what: str | Callable, *args, called: str = "", **kwargs) -> Node:
        op = what if isinstance(what, str) else what.__name__
        call = next(getattr(home, op) for home in v.HOMES if hasattr(home, op)) if isinstance(what, str) else what
        return self._add(related(Node(self._name(called or op), v.KIND_OF_NAME[op], op, call, args, kwargs)))

    def parameter(self, module: nn.Module, path: str) -> Node | None:
        """A parameter of a module, looked up in each run, because it may be replaced; None where there is none."""
        *inside, name = path.split(".")
        if getattr(operator.attrgetter(".".join(inside))(module) if inside else module, name, None) is None:
            return None
        read = operator.attrgetter(path)
        if (module, path) not in self.parameters:
            node = Node(self._name(path), v.CONSTANT, "get_attr", lambda: read(module))
            self.parameters[module, path] = self._add(node)
        return self.parameters[module, path]

    def refuse(self, why: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"node `{self.name}` (at {self.place}) {why}")

    def _name(self, called: str) -> str:
        return self.unique(f"{self.name}.{called}")

    def _add(self, node: Node) -> Node:
        node.place = self.place
        self.made.append(measure(node))
        return node
