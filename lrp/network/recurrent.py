"""Recurrent layers and cells, opened into their steps.

A gate gets nothing, and what it gates gets everything: "signal takes all" (arras2017explaining).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import NeedsExample
from .constants import shape
from .graph import Node
from .opening import Do


def first_state(x: Tensor, given: Tensor | int) -> Tensor:
    """A constant state before the first step, (N, size): what was given, or as many zeros.

    It carries, so that it is the signal of its products, and keeps what it gets: the gate gets nothing here either.
    """
    return x.new_zeros(*x.shape[:-1], given) if isinstance(given, int) else given.clone()


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
    """Gates are sigmoids of i, f and o; their signals are the candidate, c, and tanh(c) (arras2017explaining)."""
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
    """Gates are r, z and 1 - z; their signals are the candidate's layer of h, h, and the candidate."""
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
        return tuple(do(first_state, x, size) for size in sizes[: 1 + lstm])
    given = given if lstm else (given,)
    states = given if index is None else [do("select", state, 0, index) for state in given]
    return tuple(s if isinstance(s, Node) and s.carries else do(first_state, x, s) for s in states)


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


def layer_function(kind: type[nn.RNNBase], gates: int, **more) -> Callable:
    """torch.lstm and the like, which nn.LSTM's forward calls: an empty module of that kind stands for the call."""

    def compose(do, _, input, hx, params, biases, layers, dropout, train, both, batch_first=None):
        if batch_first is None or not isinstance(params, list | tuple):
            raise do.refuse(f"({kind.__name__}) takes a packed sequence: pass a tensor, of series of one length")
        if train and dropout:
            raise do.refuse(f"({kind.__name__}) drops values at random (dropout={dropout}): pass train=False")
        (rows, size), each = shape(params[0]), len(params) // (layers * (1 + both))
        projection = {"proj_size": shape(params[each - 1])[0]} if each % 2 else {}
        options = (
            more | projection | {"bias": biases, "batch_first": batch_first, "bidirectional": both, "device": "meta"}
        )
        module = kind(size, rows // gates, layers, **options)
        do.parameters |= {(module, name): p for name, p in zip(module._flat_weights_names, params, strict=True)}
        output, ends = layer(do, module, input, hx)
        return output, *(ends if isinstance(ends, tuple) else (ends,))

    return compose


def cell_function(kind: type[nn.RNNCellBase], gates: int, **more) -> Callable:
    def compose(do, _, input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
        rows, size = shape(w_ih)
        module = kind(size, rows // gates, bias=b_ih is not None, device="meta", **more)
        given = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}
        do.parameters |= {(module, name): p for name, p in given.items() if p is not None}
        return cell(do, module, input, hx)

    return compose


def cell(do: Do, module: nn.RNNCellBase, input: Node, hx=None) -> Node | tuple[Node, ...]:
    state = _cell_of(module)(do, module, "")(input, _states(do, module, input, hx, None))
    return state if isinstance(module, nn.LSTMCell) else state[0]
