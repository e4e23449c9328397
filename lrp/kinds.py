"""Which torch operation is of which kind: the words that the graph is written in.

Every call in a network, be it a module, a function or a tensor method, gets one of a dozen kinds, and the
rules are chosen by kind. `x + y`, `torch.add(x, y)`, `x.add_(y)` and `x += y` are one word here.
"""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operators import BATCHNORMS, CONVOLUTIONS

# the kinds, in the order of a typical network
INPUT = "input"
CONVOLUTION = "convolution"  # Conv1d-3d and transposed: a rule of the composite
DENSE = "dense"  # Linear, or a product with a constant matrix: a rule of the composite
BATCHNORM = "batchnorm"  # a BatchNorm that could not be folded: a rule of the composite
AVERAGE = "average"  # average pooling, mean, sum, upsampling: a rule of the composite
ADD = "add"  # sums and differences: the addition rule of the composite
PRODUCT = "product"  # signal times gate: the signal gets everything
SCALE = "scale"  # times a constant: passes
MAXIMUM = "maximum"  # max pooling: the winner gets everything
ACTIVATION = "activation"  # elementwise functions, dropout: passes
NORM = "norm"  # LayerNorm, GroupNorm, InstanceNorm: passes (the scale counts as constant)
LRN = "lrn"  # local response normalisation: the lrn rule of the composite
REARRANGE = "rearrange"  # flatten, cat, chunk, permute, pad: relevance moves with the values
PIECES = "pieces"  # a tuple of tensors (chunk, split): relevance moves with each piece
UNKNOWN = "unknown"  # no rule: an error, unless an override names the node
CONSTANT = "constant"  # sizes, masks, parameters: no relevance

WEIGHTED = (CONVOLUTION, DENSE)
LINEAR = (CONVOLUTION, DENSE, BATCHNORM, AVERAGE, ADD)

_NAMES = {
    ADD: "add radd iadd sub isub rsub subtract",
    PRODUCT: "mul rmul imul multiply div truediv true_divide itruediv divide",
    ACTIVATION: "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign tanh "
    "sigmoid hardswish hardsigmoid hardtanh logsigmoid tanhshrink softshrink hardshrink threshold dropout "
    "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout clamp clamp_min clamp_max clip "
    "stochastic_depth clone detach contiguous to float double half bfloat16 type_as neg",
    REARRANGE: "flatten reshape view permute transpose t squeeze unsqueeze chunk split unbind getitem cat "
    "concat concatenate stack expand expand_as repeat tile movedim moveaxis swapaxes swapdims narrow select "
    "index_select pixel_shuffle pixel_unshuffle channel_shuffle unflatten roll flip pad view_as reshape_as "
    "ravel",
    AVERAGE: "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "mean sum interpolate upsample",
    MAXIMUM: "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "amax maximum",
    NORM: "layer_norm group_norm instance_norm rms_norm normalize",
    LRN: "local_response_norm",
    CONVOLUTION: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    DENSE: "linear matmul mm",
    BATCHNORM: "batch_norm",
    CONSTANT: "size dim ndimension numel getattr len _assert zeros_like ones_like full_like empty_like "
    "new_zeros new_ones new_full new_empty new_tensor gt lt ge le eq ne argmax argmin is_floating_point",
}
KIND_OF_NAME = {name: kind for kind, names in _NAMES.items() for name in names.split()}

_PADS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)
_MODULES = {
    CONVOLUTION: CONVOLUTIONS,
    DENSE: (nn.Linear,),
    BATCHNORM: BATCHNORMS,
    AVERAGE: (
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    ),
    MAXIMUM: (
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    ),
    ACTIVATION: (
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
        *(nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
        *(nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity),
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    ),
    REARRANGE: (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, *_PADS),
    NORM: (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm),
    LRN: (nn.LocalResponseNorm,),
}

REGISTERED: dict[type, str] = {}  # further leaf modules and their kinds: see `register`

NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"}  # whatever comes in, >= 0 comes out
KEEPS_SIGN = {AVERAGE, MAXIMUM, REARRANGE, PIECES, PRODUCT, LRN}  # >= 0 in, >= 0 out
KEEPS_SIGN_NAMES = {"identity", "clone", "detach", "contiguous", "to"} | {
    f"{kind}{d}" for kind in ("dropout", "stochastic_depth", "stochasticdepth") for d in ("", "1d", "2d", "3d")
}
GATES = {"sigmoid", "hardsigmoid", "softmax"}  # a factor made by one of these is the gate of a product
SOFTMAXES = {"softmax", "log_softmax", "softmin", "logsoftmax", "softmax2d", "gumbel_softmax"}
DIVISIONS = {"div", "truediv", "true_divide", "divide"}
PIECEWISE = {"chunk", "split", "unbind"}
_INPLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
_HOMES = (torch, F, operator, torch._C._nn, Tensor)


def module_name(module: nn.Module) -> str:
    """Lower-case name of a module's type: 'relu', 'conv2d'."""
    return type(module).__name__.lower()


def function_name(target) -> str | None:
    """Name of a function of torch (or torchvision's stochastic depth), in-place forms under the plain name.

    A function of the user's own that merely shares a name with torch's is not taken for it: None.
    """
    if isinstance(target, str):
        name = target
    else:
        name = getattr(target, "__name__", "")
        ours = any(getattr(home, name, None) is target for home in _HOMES) or target is getattr
        if not ours and not (getattr(target, "__module__", None) or "").startswith(("torch.", "torchvision.")):
            return None
    if name in _INPLACE:
        return _INPLACE[name]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_inplace(target) -> bool:
    """Does calling this function or method change its first argument?"""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name in _INPLACE or (name.endswith("_") and not name.endswith("__") and name != "_")


def kind_of_module(module: nn.Module) -> str:
    """Kind of a leaf module; BatchNorm without running statistics depends on the batch and is unknown."""
    for cls in type(module).__mro__:
        if cls in REGISTERED:
            return REGISTERED[cls]
    for kind, types in _MODULES.items():
        if isinstance(module, types):
            if kind == BATCHNORM and module.running_mean is None:
                return UNKNOWN
            return kind
    return UNKNOWN


def is_padding(module: nn.Module | None, name: str | None) -> bool:
    """Is this torch's own padding, as a module or as `F.pad`? (A class is not asked by its name.)"""
    if module is not None:
        return isinstance(module, _PADS) and not isinstance(module, tuple(REGISTERED))
    return name == "pad"


def register(module_type: type[nn.Module], kind: str) -> None:
    """Treat modules of this type as one node of the given kind, from the next capture on.

    Use it for a module of your own that one of the kinds describes (say, an activation written in CUDA).
    """
    kinds = (ACTIVATION, NORM, LRN, REARRANGE, AVERAGE, MAXIMUM)
    if kind not in kinds:
        raise ValueError(f"a module can be registered as one of {', '.join(kinds)}, not as {kind!r}")
    REGISTERED[module_type] = kind
