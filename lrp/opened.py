"""Calls that are several of our nodes: gated units, attention, recurrent layers, opened into what they compute.

An entry of `OPENED` gets `do`, which makes one node after the other; the module, or None for a function; and the
arguments of the call. It returns the node of the call's value, or a tuple of such nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import kinds as v
from .constants import shape
from .errors import NeedsExample, UnsupportedOperation
from .gates import bound
from .graph import Node
from .relating import related

if TYPE_CHECKING:
    from .translation import Translation


class Do:
    """Makes the nodes of one call of the network: `do("matmul", a, b)` is the node of torch.matmul(a, b)."""

    def __init__(self, translation: Translation, name: str):
        self.translation, self.name = translation, name
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
        return UnsupportedOperation(f"node `{self.name}` (at {self.translation.place}) {why}")

    def _name(self, called: str) -> str:
        return self.translation.unique(f"{self.name}.{called}")

    def _add(self, node: Node) -> Node:
        node.place, node.bound = self.translation.place, bound(node)
        self.made.append(node)
        return node


# ---------------------------------------------------------------- gated units, and products with a sum


def _glu(do: Do, module: nn.Module | None, input: Node, dim: int = -1) -> Node:
    both = do("chunk", input, 2, getattr(module, "dim", dim))
    return do("mul", do("getitem", both, 0), do("sigmoid", do("getitem", both, 1)))


def _lerp(do: Do, module: None, input, end, weight) -> Node:
    rest = do("rsub", weight, 1) if isinstance(weight, Node) else 1 - weight
    return do("add", do("mul", input, rest), do("mul", end, weight))


def _product_and_sum(times: str, number: str) -> Callable:
    """beta input + alpha (a times b); `number` is torch's name for alpha."""

    def compose(do, _, input, a, b, beta=1, **given):
        product, alpha = do(times, a, b), given.get(number, 1)
        if isinstance(beta, int | float) and beta == 0:  # torch does not read `input` then, which may hold anything
            return product if alpha == 1 else do("mul", product, alpha)
        return do("add", input if beta == 1 else do("mul", input, beta), product, alpha=alpha)

    return compose


# ---------------------------------------------------------------- attention


def root_of_size(x: Tensor) -> float:
    """1 / sqrt(d), for vectors of d values on the last axis."""
    return x.shape[-1] ** -0.5


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """What is added to the scores so that no query sees a later key: 0 or -inf, (L, S)."""
    return torch.full((q.shape[-2], k.shape[-2]), -torch.inf, dtype=q.dtype, device=q.device).triu(1)


def added_mask(q: Tensor, mask: Tensor, seen: bool) -> Tensor:
    """A mask as it is added to the scores; where it is boolean, `seen` is its value at keys that are seen."""
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask != seen, -torch.inf)


def heads_as(k: Tensor, q: Tensor) -> Tensor:
    """Heads of keys, or values, repeated so that each query's head has one (grouped queries)."""
    return k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax of scores; a query that sees no key has weights of 0, as in torch's scaled_dot_product_attention."""
    blind = (x == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(x.masked_fill(blind, 0.0), dim).masked_fill(blind, 0.0)


def _attend(do: Do, q: Node, k: Node, value: Node, masks: Sequence[Node], scale=None) -> tuple[Node, Node]:
    """softmax(scale q k^T + masks) V, and the weights; q, k and V are (..., L, d)."""
    scores = do("matmul", q, do("transpose", k, -2, -1), called="scores")
    scores = do("mul", scores, do(root_of_size, q) if scale is None else scale)
    for mask in masks:
        scores = do("add", scores, mask)
    weights = do(softmax, scores, -1)
    return do("matmul", weights, value), weights


def _scaled_dot_product(
    do: Do, _, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Node:
    if dropout_p:
        raise do.refuse(
            f"(scaled_dot_product_attention) drops weights at random (dropout_p={dropout_p}), in eval mode, too: pass "
            "dropout_p=0.0 where the model does not train"
        )
    if enable_gqa:
        key, value = do(heads_as, key, query), do(heads_as, value, query)
    masks = [do(causal_mask, query, key)] if is_causal else []
    if attn_mask is not None:
        masks.append(_mask(do, query, attn_mask, True))
    return _attend(do, query, key, value, masks, scale)[0]


def _mask(do: Do, q: Node, mask, seen: bool) -> Node:
    carries = isinstance(mask, Node) and mask.carries  # a position bias that is computed from the input
    return mask if carries else do(added_mask, q, mask, seen)


def _multihead_module(
    do: Do, m: nn.MultiheadAttention, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
    average_attn_weights=True, is_causal=False,
) -> tuple[Node, Node | None]:  # fmt: skip
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    whole = None if not m._qkv_same_embed_dim else do.parameter(m, "in_proj_weight")
    return _multihead(
        do, (query, key, value), m.num_heads,
        [do.parameter(m, name) for name in names] if whole is None else whole, do.parameter(m, "in_proj_bias"),
        do.parameter(m, "out_proj.weight"), do.parameter(m, "out_proj.bias"),
        _own_keys([do.parameter(m, name) for name in ("bias_k", "bias_v")], m.add_zero_attn), key_padding_mask,
        attn_mask, (need_weights, average_attn_weights), m.batch_first,
    )  # fmt: skip


def _multihead_function(
    do: Do, _, query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
    add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training=True, key_padding_mask=None, need_weights=True,
    attn_mask=None, use_separate_proj_weight=False, q_proj_weight=None, k_proj_weight=None, v_proj_weight=None,
    static_k=None, static_v=None, average_attn_weights=True, is_causal=False,
) -> tuple[Node, Node | None]:  # fmt: skip
    if training and dropout_p:
        raise do.refuse(f"drops attention at random (dropout_p={dropout_p}): pass training=False")
    if static_k is not None or static_v is not None:
        raise do.refuse(
            "takes keys or values that are made beforehand (static_k, static_v): call scaled_dot_product_attention"
        )
    weights = [q_proj_weight, k_proj_weight, v_proj_weight] if use_separate_proj_weight else in_proj_weight
    return _multihead(
        do, (query, key, value), num_heads, weights, in_proj_bias, out_proj_weight, out_proj_bias,
        _own_keys((bias_k, bias_v), add_zero_attn), key_padding_mask, attn_mask,
        (need_weights, average_attn_weights), False,
    )  # fmt: skip


def _multihead(
    do: Do, signals: Sequence[Node], heads: int, weights, bias, out_weight, out_bias, own: list, padding, mask,
    wanted: tuple[bool, bool], batch_first: bool,
) -> tuple[Node, Node | None]:  # fmt: skip
    """nn.MultiheadAttention: projections, heads beside the samples, attention, and the projection of all heads."""
    three = range(3)
    weights = weights if isinstance(weights, list) else _thirds(do, weights)
    biases = [None] * 3 if bias is None else _thirds(do, bias)
    parts = [do("linear", signals[i], weights[i], biases[i], called=f"{'qkv'[i]}_proj") for i in three]
    split = [do("unflatten", part, -1, (heads, -1)) for part in parts]  # (N, L, heads, d), or (L, N, heads, d)
    q, k, value = (do("transpose", p, -3, -2) if batch_first else do("movedim", p, 0, -2) for p in split)
    for own_key, own_value in own:
        k = do("cat", [k, do(own_row, k, own_key)], -2)
        value = do("cat", [value, do(own_row, value, own_value)], -2)
    masks = [_head_mask(do, q, mask, heads, False), _head_mask(do, q, padding, heads, True)]
    masks = [do("pad", m, (0, len(own))) if own else m for m in masks if m is not None]  # all see what is its own
    o, attention = _attend(do, q, k, value, masks)
    o = do("transpose", o, -3, -2) if batch_first else do("movedim", o, -2, 0)
    out = do("linear", do("flatten", o, -2), out_weight, out_bias, called="out_proj")
    need, average = wanted
    return out, None if not need else do("mean", attention, -3) if average else attention


def _own_keys(biases: Sequence, zeros: bool) -> list[tuple]:
    """The keys and values that stand behind those of the input: parameters, and zeros (None)."""
    return [tuple(biases)] * (biases[0] is not None) + [(None, None)] * zeros


def own_row(k: Tensor, bias: Tensor | None) -> Tensor:
    """One more row for keys or values (..., heads, S, d): of a bias of all heads, (1, 1, heads d), or of zeros."""
    row = k.new_zeros(k.shape[-3], 1, k.shape[-1]) if bias is None else bias.view(k.shape[-3], 1, -1)
    return row.expand(*k.shape[:-2], 1, -1)


def _thirds(do: Do, whole) -> list[Node]:
    pieces = do("chunk", whole, 3)
    return [do("getitem", pieces, i) for i in range(3)]


def _head_mask(do: Do, q: Node, mask, heads: int, of_keys: bool) -> Node | None:
    """The mask of nn.MultiheadAttention, in which True means not seen, beside the scores (..., heads, L, S)."""
    if mask is None:
        return None
    if isinstance(mask, Node) and mask.carries:
        raise do.refuse(
            "(MultiheadAttention) has a mask that is computed from the input's values, and no rule shares it: pass a "
            "boolean mask, or one of constants"
        )
    return do(added_head_mask, q, mask, heads, of_keys)


def added_head_mask(q: Tensor, mask: Tensor, heads: int, of_keys: bool) -> Tensor:
    """As `added_mask`: of keys (N, S) or (S,), or of queries and keys (L, S) or (N heads, L, S)."""
    mask = added_mask(q, mask, False)
    if of_keys:
        return mask[..., None, None, :]
    return mask if mask.dim() == 2 or q.dim() == 3 else mask.unflatten(0, (-1, heads))


# ---------------------------------------------------------------- recurrent layers
#
# Gates of recurrent cells get nothing, and what they gate gets everything (arras2017explaining).


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
    def cell(do: Do, module: nn.Module, suffix: str) -> Callable:
        w, b = _joined(do, module, suffix)
        return lambda x, state: (do(activation, do("linear", do("cat", [x, state[0]], -1), w, b)),)

    return cell


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


def _recurrent(do: Do, module: nn.RNNBase, input, hx=None) -> tuple:
    """Step by step, layer by layer; each cell is one linear layer of [x_t, h_t-1] (a GRU's candidate: two)."""
    if not isinstance(input, Node):
        raise do.refuse(f"({type(module).__name__}) takes a packed sequence: pass a tensor, of series of one length")
    if input.shape is None:
        raise NeedsExample(f"`{do.name}` ({type(module).__name__}) goes step by step, as many as its input is long")
    time = 1 if module.batch_first and len(input.shape) == 3 else 0
    xs = [do("select", input, time, t, called="x") for t in range(input.shape[time])]
    last, ways = [], 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        found = []
        for way in range(ways):
            step = _cell_of(module)(do, module, f"_l{layer}" + "_reverse" * way)
            state, hs = _states(do, module, xs[0], hx, layer * ways + way), []
            for x in reversed(xs) if way else xs:
                state = step(x, state)
                hs.append(state[0])
            last.append(state)
            found.append(hs[::-1] if way else hs)
        xs = found[0] if ways == 1 else [do("cat", list(both), -1) for both in zip(*found, strict=True)]
    ends = tuple(do("stack", list(same), 0) for same in zip(*last, strict=True))
    return do("stack", xs, time), ends if isinstance(module, nn.LSTM) else ends[0]


def _recurrent_function(kind: type[nn.RNNBase], gates: int, **more) -> Callable:
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
        output, ends = _recurrent(do, module, input, hx)
        return output, *(ends if isinstance(ends, tuple) else (ends,))

    return compose


def _cell_function(kind: type[nn.RNNCellBase], gates: int, **more) -> Callable:
    def compose(do, _, input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
        rows, size = shape(w_ih)
        module = kind(size, rows // gates, bias=b_ih is not None, device="meta", **more)
        given = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}
        do.parameters |= {(module, name): p for name, p in given.items() if p is not None}
        return _cell(do, module, input, hx)

    return compose


def _cell(do: Do, module: nn.RNNCellBase, input: Node, hx=None) -> Node | tuple[Node, ...]:
    state = _cell_of(module)(do, module, "")(input, _states(do, module, input, hx, None))
    return state if isinstance(module, nn.LSTMCell) else state[0]


OPENED = {
    "glu": _glu,
    "lerp": _lerp,
    "addcmul": _product_and_sum("mul", "value"),
    "addcdiv": _product_and_sum("div", "value"),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _product_and_sum("matmul", "alpha")),
    "scaled_dot_product_attention": _scaled_dot_product,
    "multiheadattention": _multihead_module,
    "multi_head_attention_forward": _multihead_function,
    **dict.fromkeys(("rnn", "lstm", "gru"), _recurrent),
    **dict.fromkeys(("rnncell", "lstmcell", "grucell"), _cell),
}
FUNCTIONS = OPENED | {  # by the names of functions, of which two are names of modules, too
    "lstm": _recurrent_function(nn.LSTM, 4),
    "gru": _recurrent_function(nn.GRU, 3),
    "lstm_cell": _cell_function(nn.LSTMCell, 4),
    "gru_cell": _cell_function(nn.GRUCell, 3),
    **{f"rnn_{act}": _recurrent_function(nn.RNN, 1, nonlinearity=act) for act in ("tanh", "relu")},
    **{f"rnn_{act}_cell": _cell_function(nn.RNNCell, 1, nonlinearity=act) for act in ("tanh", "relu")},
}
