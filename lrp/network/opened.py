"""Calls that are several of our nodes, opened into what they compute: gated units, attention, recurrent layers.

An entry of `OPENED` gets `do`, which makes one node after the other; the module, or None for a function; and the
arguments of the call. It returns the node of the call's value, or a tuple of such nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import recurrent
from .graph import Node
from .opening import Do

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


OPENED = {
    "glu": _glu,
    "lerp": _lerp,
    "addcmul": _product_and_sum("mul", "value"),
    "addcdiv": _product_and_sum("div", "value"),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _product_and_sum("matmul", "alpha")),
    "scaled_dot_product_attention": _scaled_dot_product,
    "multiheadattention": _multihead_module,
    "multi_head_attention_forward": _multihead_function,
    **dict.fromkeys(("rnn", "lstm", "gru"), recurrent.layer),
    **dict.fromkeys(("rnncell", "lstmcell", "grucell"), recurrent.cell),
}
FUNCTIONS = OPENED | {  # by the names of functions, of which two are names of modules, too
    "lstm": recurrent.layer_function(nn.LSTM, 4),
    "gru": recurrent.layer_function(nn.GRU, 3),
    "lstm_cell": recurrent.cell_function(nn.LSTMCell, 4),
    "gru_cell": recurrent.cell_function(nn.GRUCell, 3),
    **{f"rnn_{act}": recurrent.layer_function(nn.RNN, 1, nonlinearity=act) for act in ("tanh", "relu")},
    **{f"rnn_{act}_cell": recurrent.cell_function(nn.RNNCell, 1, nonlinearity=act) for act in ("tanh", "relu")},
}
