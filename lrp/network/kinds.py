"""Which torch operation is of which kind: the words that the graph is written in.

Every call in a network, be it a module, a function or a tensor method, gets one of a dozen kinds, and the
rules are chosen by kind. `x + y`, `torch.add(x, y)`, `x.add_(y)` and `x += y` are one word here.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# the kinds, in the order of a typical network
INPUT = "input"
CONVOLUTION = "convolution"  # Conv1d-3d and transposed: a rule of the composite
DENSE = "dense"  # Linear, or a product with a constant matrix: a rule of the composite
BATCHNORM = "batchnorm"  # a x + b with constants, not folded into a layer: a rule of the composite
AVERAGE = "average"  # average pooling, mean, sum, upsampling: a rule of the composite
ADD = "add"  # sums and differences: the addition rule of the composite
PRODUCT = "product"  # signal times gate: the signal gets everything
MATMUL = "matmul"  # matmul, bmm or einsum of two signals, as in attention: the matmul rule of the composite
SOFTMAX = "softmax"  # where relevance gets there, not where it makes a gate: the softmax rule of the composite
SCALE = "scale"  # times a constant: passes
MAXIMUM = "maximum"  # max pooling, the larger of two: the winner gets everything
ACTIVATION = "activation"  # elementwise functions, dropout: passes
NORM = "norm"  # LayerNorm, RMSNorm, GroupNorm, InstanceNorm: the norm rule of the composite, by default passes
LRN = "lrn"  # local response normalisation: the lrn rule of the composite
REARRANGE = "rearrange"  # flatten, cat, chunk, permute, pad: relevance moves with the values
PIECES = "pieces"  # a tuple of tensors (chunk, split): relevance moves with each piece
UNKNOWN = "unknown"  # no rule: an error, unless an override names the node
CONSTANT = "constant"  # sizes, masks, parameters: no relevance

WEIGHTED = (CONVOLUTION, DENSE)
LINEAR = (CONVOLUTION, DENSE, BATCHNORM, AVERAGE, ADD)

# The words of each kind: functions, methods, and modules (nn.LeakyReLU is "leaky_relu"). "#" stands for 1, 2 and 3.
_PADDINGS = "pad zero_pad#d constant_pad#d reflection_pad#d replication_pad#d circular_pad#d"
_MAX_POOLS = "max_pool#d max_pool#d_with_indices adaptive_max_pool#d adaptive_max_pool#d_with_indices"
_LINEAR = "float double half bfloat16 type_as neg negative"
_SIGN_KEEPERS = "identity clone detach contiguous pos positive to dropout dropout#d stochastic_depth"
_PRODUCTS = "matmul mm bmm mv inner tensordot einsum"
_MEASURES = "size dim ndimension numel nelement len is_floating_point zeros_like ones_like full_like empty_like "
_MEASURES += "new_zeros new_ones new_full new_empty new_tensor root_of_size causal_mask added_mask "
_MEASURES += "added_head_mask own_row"
_MULTIPLICATIONS = "mul rmul imul multiply"
_DIVISIONS = "div truediv true_divide divide"
_NAMES = {
    ADD: "add radd iadd sub isub rsub subtract",
    PRODUCT: f"{_MULTIPLICATIONS} {_DIVISIONS} itruediv",
    ACTIVATION: "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign tanh "
    "sigmoid special_expit logsigmoid log_sigmoid hardswish hardsigmoid hardtanh tanhshrink softshrink hardshrink "
    "threshold alpha_dropout feature_alpha_dropout clamp clamp_min clamp_max clip pow square sqrt abs absolute "
    f"{_LINEAR} {_SIGN_KEEPERS}",
    REARRANGE: "flatten reshape view permute transpose t squeeze unsqueeze chunk split unbind getitem cat "
    "concat concatenate stack expand expand_as repeat tile movedim moveaxis swapaxes swapdims narrow select "
    "index_select gather take_along_dim diagonal rot90 fliplr flipud setitem copy write_part read_part max_unpool#d "
    "tensor_split hsplit vsplit dsplit split_with_sizes pixel_shuffle pixel_unshuffle channel_shuffle unflatten roll "
    "flip view_as reshape_as ravel where masked_fill index_fill index_copy index_put scatter select_scatter "
    f"slice_scatter masked_scatter tril triu repeat_interleave unfold heads_as first_state {_PADDINGS}",
    AVERAGE: "avg_pool#d adaptive_avg_pool#d mean sum interpolate upsample fold",
    MAXIMUM: f"{_MAX_POOLS} amax amin maximum minimum fmax fmin",
    NORM: "layer_norm group_norm instance_norm instance_norm#d rms_norm normalize",
    LRN: "local_response_norm",
    SOFTMAX: "softmax softmax#d special_softmax",
    CONVOLUTION: "conv#d conv_transpose#d",
    DENSE: f"linear {_PRODUCTS}",
    BATCHNORM: "batch_norm batch_norm#d sync_batch_norm",
    CONSTANT: f"{_MEASURES} getattr _assert gt lt ge le eq ne greater less greater_equal less_equal not_equal "
    "isnan isinf isfinite bool int long argmax argmin argsort",
}


def _words(text: str) -> list[str]:
    """The words of a text, each "#" written out."""
    return [word.replace("#", d) for word in text.split() for d in ("123" if "#" in word else " ")]


KIND_OF_NAME = {word: kind for kind, text in _NAMES.items() for word in _words(text)}
_TYPES = {name.lower(): t for name, t in vars(nn).items() if isinstance(t, type) and issubclass(t, nn.Module)}
_KIND_OF_TYPE = {_TYPES[w]: kind for word, kind in KIND_OF_NAME.items() if (w := word.replace("_", "")) in _TYPES}
BLOCKS = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder)  # torch's own that are looked into
BLOCKS += (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
REGISTERED: dict[type, str] = {}  # further leaf modules and their kinds: see `register`

# Sets of operations (`Node.op`): lower-case names of torch's modules, or names of its functions and methods.
PADS = {name for word in _words(_PADDINGS) for name in (word, word.replace("_", ""))}
KEEPS_SIGN_NAMES = set(_words(_SIGN_KEEPERS))  # activations that copy
LINEAR_NAMES = KEEPS_SIGN_NAMES | set(_LINEAR.split())  # and those that are linear
UNRULED = set(  # further elementwise functions: relevance needs a rule for them, unless they are part of an activation
    "exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh asin acos atan arctan asinh acosh atanh erf erfc erfinv "
    "rsqrt reciprocal sign sgn floor ceil round trunc frac logit special_erf nan_to_num rpow".split()
)
JOINS = set("maximum minimum fmax fmin max min where masked_fill clamp clamp_min clamp_max clip pow".split())
ZEROS = {"tril", "triu", "unfold", "first_state", *_words("max_unpool#d maxunpool#d")}  # these add some
FILLS = ZEROS | set("masked_fill index_fill index_copy index_put scatter select_scatter slice_scatter setitem".split())
MEASURES = set(_words(_MEASURES))  # these ask for the shape and the type of a tensor, not for its values
FORMS = MEASURES | {"getattr"}
_STAYING = "getitem chunk split tensor_split hsplit split_with_sizes cat concat concatenate stack squeeze unsqueeze "
_STAYING += (
    "narrow index_select expand expand_as where masked_fill index_fill setitem channel_shuffle flip roll tril triu "
    "first_state"
)
STAYING = PADS | set(_STAYING.split())  # of what rearranges: these leave features features, and places places
RESAMPLING, SMOOTH = {"interpolate", "upsample"}, set("nearest nearest-exact linear bilinear trilinear area".split())
UNCENTRED = {"rms_norm", "rmsnorm", "normalize"}  # norms that subtract no mean and add no bias
GATES = set("sigmoid special_expit hardsigmoid softmax special_softmax".split())  # what they make is a product's gate
SOFTMAXES = {"softmax", "log_softmax", "softmin", "logsoftmax", "softmax2d", "gumbel_softmax"}
SOFTMAXES |= {"special_softmax", "special_log_softmax"}
SIGMOIDS = set("sigmoid hardsigmoid logsigmoid log_sigmoid special_expit".split())  # probabilities, or their logs
ENDS = SIGMOIDS | {"softmax", "log_softmax", "logsoftmax", "softmax2d", "special_softmax", "special_log_softmax"}
PRODUCTS = set(_words(_PRODUCTS))
OPERANDS = {"input", "self", "other", "tensor", "mat2", "vec", "a", "b"}  # torch's names for two factors
NEGATIONS = {"neg", "negative"}
COPIES = KEEPS_SIGN_NAMES - {"to"}  # what gives the same values in the same type
MULTIPLICATIONS, DIVISIONS = set(_MULTIPLICATIONS.split()), set(_DIVISIONS.split())
PIECEWISE = set("chunk split unbind tensor_split hsplit vsplit dsplit split_with_sizes".split())
_POOLS = _words(_MAX_POOLS)
SEVERAL = {  # what gives several tensors, of which each has a kind of its own
    **dict.fromkeys("max min median nanmedian mode kthvalue cummax cummin".split(), (MAXIMUM, CONSTANT)),
    **dict.fromkeys(_POOLS, (MAXIMUM, CONSTANT)),
    **dict.fromkeys((pool.replace("_", "") for pool in _POOLS), (MAXIMUM, CONSTANT)),
    **dict.fromkeys(("sort", "topk"), (REARRANGE, CONSTANT)),
    **dict.fromkeys(("var_mean", "std_mean"), (UNKNOWN, AVERAGE)),
    "aminmax": (MAXIMUM, MAXIMUM),
}
SHAPED_LIKE = {"expand_as", "view_as", "reshape_as", "type_as", "to", "heads_as"}  # the second tensor gives no values
FIELDS = {"values": 0, "indices": 1, "min": 0, "max": 1}  # names of their results
CARRYING = {"mT", "T", "H", "mH", "real", "data"}  # attributes of a tensor that hold its values
FACTS = set(  # and those that do not
    "shape dtype device layout ndim names is_cuda is_cpu is_meta is_mps is_xpu is_sparse is_quantized is_nested "
    "is_leaf itemsize nbytes requires_grad grad_fn".split()
)
_INPLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
HOMES = (torch, F, operator, torch._C._nn, Tensor)  # where torch's functions are found by name


def module_name(module: nn.Module) -> str:
    """Lower-case name of a module's type ("relu", "conv2d"); the full name where it takes a name of torch's."""
    cls, name = type(module), type(module).__name__.lower()
    takes = (name in _TYPES or name in KIND_OF_NAME) and not cls.__module__.startswith("torch.")
    return f"{cls.__module__}.{cls.__qualname__}" if takes else name


def function_name(target) -> str | None:
    """Name of a function of torch (or torchvision's stochastic depth), in-place forms under the plain name.

    A function of the user's own is not taken for torch's, even under the same name: None.
    """
    if isinstance(target, str):
        return _plain(target)
    name = getattr(target, "__name__", "")
    known = any(getattr(home, name, None) is target for home in HOMES) or target is getattr
    if known or (getattr(target, "__module__", None) or "").startswith(("torch.", "torchvision.", "lrp.")):
        return _plain(name)
    return None


def is_inplace(target) -> bool:
    """Does calling this function of torch, or this method, change its first argument?"""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return function_name(target) not in (None, name)


def _plain(name: str) -> str:
    """`relu_` becomes `relu`, `iadd` becomes `add`; other names stay."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else _INPLACE.get(name, name)


def kind_of_module(module: nn.Module) -> str:
    """Kind of a leaf module; BatchNorm without running statistics depends on the batch and is unknown."""
    types = type(module).__mro__
    kind = next((table[t] for table in (REGISTERED, _KIND_OF_TYPE) for t in types if t in table), UNKNOWN)
    return UNKNOWN if kind == BATCHNORM and module.running_mean is None else kind


def register(module_type: type[nn.Module], kind: str) -> None:
    """Treat modules of this type as one node of the given kind, from the next capture on.

    Use it for a module of your own that one of the kinds describes (say, an activation written in CUDA).
    """
    kinds = (ACTIVATION, NORM, LRN, REARRANGE, AVERAGE, MAXIMUM)
    if kind not in kinds:
        raise ValueError(f"a module can be registered as one of {', '.join(kinds)}, not as {kind!r}")
    REGISTERED[module_type] = kind
