"""Recurrent layers and cells, opened into their steps: gates are gates, and signal takes all (arras2017explaining)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .errors import NeedsExample
from .graph import Node
from .opening import Do


def zero_state(x: Tensor, size: int) -> Tensor:
    """The state before the first step, (N, size)."""
    return x.new_zeros(*x.shape[:-1], size)


def _joined(do: Do, module: nn.Module, suffix: str, rows: slice | None = None) -> tuple[Node, Node | None]:
    """Weight and bias of the one linear layer of [x, h]."""
    weights = [do.parameter(module, f"weight_{part}{suffix}") for part in ("ih", "hh")]
    biases = [do.parameter(module, f"bias_{part}{suffix}") for part in ("ih", "hh")]
    if rows is not None:
        weights, biases = ([t and do("getitem", t, rows) for t in ts] for ts in (weights, biases))
    return do("cat", weights, 1), biases[0] and do("add", *biases)


def _plain(activation: str) -> Callable:
    def made(do: Do, module: nn.Module, suffix: str) -> Callable:
        w, b = _joined(do, module, suffix)
        return lambda x, state: (do(activation, do("linear", do("cat", [x, state[0]], -1), w, b)),)

    return made


def _lstm_cell(do: Do, module: nn.Module, suffix: str) -> Callable:
    w, b = _joined(do, module, suffix)
    projection = do.parameter(module, f"weight_hr{suffix}") if getattr(module, "proj_size", 0) else None

    def step(x, state):
        h, c = state
        z = do("chunk", do("linear", do("cat", [x, h], -1), w, b), 4, -1)
        i, f, g, o = (do("getitem", z, k) for k in range(4))
        kept, new = do("mul", do("sigmoid", f), c), do("mul", do("sigmoid", i), do("tanh", g))
        c = do("add", kept, new)
        h = do("mul", do("sigmoid", o), do("tanh", c))
        return (h if projection is None else do("linear", h, projection)), c

    return step


def _gru_cell(do: Do, module: nn.Module, suffix: str) -> Callable:
    size = module.hidden_size
    w, b = _joined(do, module, suffix, slice(0, 2 * size))
    last = [do.parameter(module, f"{part}{suffix}") for part in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    w_x, b_x, w_h, b_h = (t and do("getitem", t, slice(2 * size, None)) for t in last)

    def step(x, state):
        (h,) = state
        gates = do("chunk", do("sigmoid", do("linear", do("cat", [x, h], -1), w, b)), 2, -1)
        r, z = (do("getitem", gates, k) for k in range(2))
        n = do("tanh", do("add", do("linear", x, w_x, b_x), do("mul", r, do("linear", h, w_h, b_h))))
        return (do("add", do("mul", do("rsub", z, 1), n), do("mul", z, h)),)

    return step


def _cell_of(module: nn.Module) -> Callable:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return _lstm_cell
    return _gru_cell if isinstance(module, nn.GRU | nn.GRUCell) else _plain(module.nonlinearity)


def _states(do: Do, module: nn.Module, x: Node, given, index: int | None) -> tuple:
    """The state before the first step: zeros, or what was given, of one layer and direction."""
    lstm = isinstance(module, nn.LSTM | nn.LSTMCell)
    if given is None:
        sizes = [getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size]
        return tuple(do(zero_state, x, size) for size in sizes[: 1 + lstm])
    given = given if lstm else (given,)
    return tuple(given) if index is None else tuple(do("select", state, 0, index) for state in given)


def layer(do: Do, module: nn.RNNBase, input, hx=None) -> tuple:
    """Step by step, layer by layer; each cell is one linear layer of [x_t, h_t-1] (a GRU's candidate: two)."""
    if not isinstance(input, Node):
        raise do.refuse(f"({type(module).__name__}) takes a packed sequence: pass a tensor, of series of one length")
    if input.shape is None:
        raise NeedsExample(f"`{do.name}` ({type(module).__name__}) goes step by step, as many as its input is long")
    time = 1 if module.batch_first and len(input.shape) == 3 else 0
    xs = [do("select", input, time, t, called="x") for t in range(input.shape[time])]
    last, ways = [], 2 if module.bidirectional else 1
    for depth in range(module.num_layers):
        found = []
        for way in range(ways):
            step = _cell_of(module)(do, module, f"_l{depth}" + "_reverse" * way)
            state, hs = _states(do, module, xs[0], hx, depth * ways + way), []
            for x in reversed(xs) if way else xs:
                state = step(x, state)
                hs.append(state[0])
            last.append(state)
            found.append(hs[::-1] if way else hs)
        xs = found[0] if ways == 1 else [do("cat", list(both), -1) for both in zip(*found, strict=True)]
    ends = tuple(do("stack", list(same), 0) for same in zip(*last, strict=True))
    return do("stack", xs, time), ends if isinstance(module, nn.LSTM) else ends[0]


def cell(do: Do, module: nn.RNNCellBase, input: Node, hx=None) -> Node | tuple[Node, ...]:
    state = _cell_of(module)(do, module, "")(input, _states(do, module, input, hx, None))
    return state if isinstance(module, nn.LSTMCell) else state[0]
