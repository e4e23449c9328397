"""What LRP is compared with: gradients, their descendants, Grad-CAM, occlusion, and controls that need no network.

`METHODS` maps names to methods, all called as `method(model, x, target)`: x is (N, C, H, W), target None (the
predicted class), an int or a LongTensor (N,), and the map is (N, H, W), one value per pixel. How channels become one
value stands in the table, so no method is scored on one colour by accident. `lrp_method` gives LRP the same signature.

All methods but the controls run in captum (kokhlikyan2020captum), on a copy of the model: the model itself, with its
mode, hooks, gradients and flags, is only read. A batch of N gives the maps of N single images.
"""

import copy
import inspect
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum import attr
from skimage.filters import sobel
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .. import checks
from ..composites import Composite
from ..engine import LRP, Target
from ..errors import CaptureError, LRPError, UnsupportedOperation
from ..seeds import Contrastive, Seed
from . import flipping, metrics

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {  # (N, C, H, W) -> (N, H, W)
    "sum": lambda R: R.sum(1),  # contributions, in units of the logit: they add up over channels
    "magnitude": lambda R: R.abs().sum(1),  # sensitivities, per unit of input: the sign depends on the colour's
    "mean": lambda R: R.mean(1),  # all channels were changed at once and carry the same value
}


@dataclass(frozen=True)
class Method:
    """A named method: `raw` gives (N, C, H, W) for a model that it may change, `reduction` makes it (N, H, W).

    Raises InputError for a model in training mode or an input that is not a sound (N, C, H, W), TargetError for
    targets that are no classes of the output, LRPError where the map is not finite.
    """

    name: str
    raw: Callable[..., Tensor]
    reduction: str

    def __call__(self, model: nn.Module, x: Tensor, target: Target = None, **options) -> Tensor:
        """The map (N, H, W); options are those of `raw`, such as `layer` of Grad-CAM."""
        flipping.images(model, x, target)
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="captum")
            x = x.detach().clone()
            net, output = prepared(model, x)
            targets, _ = checks.targets(target, output)
            R = self.raw(net, x.requires_grad_(), targets[0], **options).detach().to(x.dtype)
        R = REDUCTIONS[self.reduction](R)
        if not torch.isfinite(R).all():
            raise LRPError(f"the map of {self.name} is not finite")
        return R


def prepared(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy that works out of place and gathers no gradients of its parameters, and its output (N, K)."""
    net = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        output = checks.run(net, x)
        checks.logits(output, model)
        for module in net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.register_forward_hook(_gradient_in_order)
        checks.same_output(output, net(x.clone()), model)
    return net, output


def _gradient_in_order(module: nn.Module, args: tuple, output: Tensor) -> None:
    """torch 2.15 takes the strides of a turned gradient of one image for channels-last, and BatchNorm's is wrong."""
    output.register_hook(Tensor.contiguous) if output.requires_grad else None


# ---------------------------------------------------------------- gradients


def _gradient(net, x, target):
    """R = d f_t / d x (simonyan2014deep)."""
    return attr.Saliency(net).attribute(x, target, abs=False)


def _gradient_x_input(net, x, target):
    """R = x * d f_t / d x (shrikumar2016not)."""
    return attr.InputXGradient(net).attribute(x, target)


def _smoothgrad(net, x, target, noise=0.15, samples=25, seed=0):
    """R = mean of d f_t / d x over x + normal noise (smilkov2017smoothgrad).

    noise: standard deviation as a share of max x - min x of each image. Every image sees the same draws, whatever
    its batch. The average is taken of signed gradients, before any magnitude.
    """
    tunnel, maps = attr.NoiseTunnel(attr.Saliency(net)), []
    generator = torch.cuda.default_generators[x.get_device()] if x.is_cuda else torch.default_generator
    for one, t in zip(x.detach().split(1), target.split(1), strict=True):
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            generator.manual_seed(seed)
            width = noise * float(one.max() - one.min())
            maps.append(tunnel.attribute(one, nt_samples=samples, stdevs=width, target=t, abs=False))
    return torch.cat(maps)


def _integrated_gradients(net, x, target, baseline=0.0, steps=50, batch=64):
    """R = (x - b) * mean of d f_t / d x on the way from b to x; sums to f_t(x) - f_t(b) (sundararajan2017axiomatic).

    baseline: b, a number or a tensor (C, H, W) or (C, 1, 1) in the units of x; 0 is the mean image of most networks.
    Gauss-Legendre with `steps` points, about `batch` images at once.
    """
    b = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x).contiguous()
    return attr.IntegratedGradients(net).attribute(
        x, b, target, n_steps=steps, method="gausslegendre", internal_batch_size=max(batch, len(x))
    )


# ---------------------------------------------------------------- other ways back through ReLU


def _guided_backprop(net, x, target):
    """The gradient, but a ReLU hands down g * [z > 0] * [g > 0] (springenberg2015striving)."""
    return attr.GuidedBackprop(_relus_apart(net, x)).attribute(x, target)


def _deconvnet(net, x, target):
    """The gradient, but a ReLU hands down g * [g > 0], for inputs of both signs (zeiler2014visualizing).

    Max pooling goes back by its switches, as in the paper.
    """
    return attr.Deconvolution(_relus_apart(net, x)).attribute(x, target)


_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, "relu", "relu_"}


class _CountReLUs(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function in _RELUS
        return function(*args, **(kwargs or {}))


def _relus_apart(net: nn.Module, x: Tensor) -> fx.GraphModule:
    """The network with a module for every call of ReLU, each working on a tensor of its own.

    captum changes the gradient at nn.ReLU modules. It does not see functional ones, takes the gradient of the whole
    input for the ReLU's share where the input goes elsewhere too, and mixes up two branches that call one module;
    torch.fx finds every call. Raises CaptureError where that fails, UnsupportedOperation where there is no ReLU, or
    one inside of a module that fx does not open.
    """
    parameters = inspect.signature(net.forward).parameters.values()
    try:
        traced = fx.symbolic_trace(net, {p.name: p.default for p in parameters if p.default is not p.empty}).eval()
    except Exception as error:  # fx raises many types here, each about the same thing
        raise CaptureError(
            "captum's guided backpropagation and DeconvNet need each ReLU as a module of its own; torch.fx cannot "
            f"trace {type(net).__name__} to make them: {error}"
        ) from error
    graph, modules, count = traced.graph, dict(traced.named_modules()), 0
    for node in list(graph.nodes):
        module = modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.ReLU) or (node.op in ("call_function", "call_method") and node.target in _RELUS):
            traced.add_submodule(f"own_relu_{count}", nn.ReLU())
            with graph.inserting_before(node):
                fresh = graph.call_function(torch.clone, (next(iter((*node.args, *node.kwargs.values()))),))
                node.replace_all_uses_with(graph.call_module(f"own_relu_{count}", (fresh,)))
            graph.erase_node(node)
            count += 1
    traced.recompile()
    with torch.no_grad(), _CountReLUs() as counter:
        output = traced(x.detach())
    if not count or counter.calls != count:
        raise UnsupportedOperation(
            f"{type(net).__name__} has {'a functional ReLU inside of a module' if count else 'no ReLU'}: captum's "
            "guided backpropagation and DeconvNet change the gradient of nn.ReLU only (ReLU6, GELU and others keep "
            "theirs), and would silently give another map"
        )
    checks.same_output(net(x.detach()).detach(), output, net)
    return traced


# ---------------------------------------------------------------- layers and patches


def _grad_cam(net, x, target, layer=None):
    """R = max(0, sum_k A_k mean(d f_t / d A_k)), bilinear from the layer's size to the image's (selvaraju2017grad).

    layer: name of the module whose output is A; by default the last one with an output (N, C, H, W) of more than one
    place. In a VGG that is the pooling at the end of the features, one step after the paper's last convolution.
    """
    R = attr.LayerGradCam(net, _layer(net, x, layer)).attribute(x, target, relu_attributions=True)
    return attr.LayerAttribution.interpolate(R, tuple(x.shape[2:]), "bilinear")


def _layer(net: nn.Module, x: Tensor, name: str | None) -> nn.Module:
    """The module of this name, else the last to finish, among those with maps as output."""
    found: dict[str, nn.Module] = {}

    def look(path, module, output):
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            found.pop(path, None)
            found[path] = module

    handles = [m.register_forward_hook(lambda m, _, out, p=p: look(p, m, out)) for p, m in net.named_modules()]
    with torch.no_grad():
        net(x[:1])
    for handle in handles:
        handle.remove()
    if not found or name not in (None, *found):
        raise LRPError(
            f"Grad-CAM needs a layer with an output (N, C, H, W) of more than one place; {type(net).__name__} has "
            + (f"none called {name!r}, but {', '.join(list(found)[-5:])}" if found else "none")
        )
    return found[name or list(found)[-1]]


def _guided_grad_cam(net, x, target, layer=None):
    """Grad-CAM times guided backpropagation, pixel by pixel (selvaraju2017grad)."""
    return _grad_cam(net, x, target, layer).detach() * _guided_backprop(net, x, target)


def _occlusion(net, x, target, window=None, stride=None, baseline=0.0, batch=128):
    """Drop of f_t where a square is replaced, averaged over the squares that cover a pixel (zeiler2014visualizing).

    window: side in pixels (default an eighth of the shorter side of the image), moved by `stride` (default half of
    it) and cut at the right and lower borders. baseline: what replaces it, as in integrated gradients; 0 is grey.
    """
    window = max(1, min(x.shape[2:]) // 8) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window <= min(x.shape[2:]):
        raise LRPError(f"1 <= stride <= window <= {min(x.shape[2:])} must hold; got stride {stride}, window {window}")
    b = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x[:1])
    with torch.no_grad():
        shape, step, at_once = (x.shape[1], window, window), (x.shape[1], stride, stride), max(1, batch // len(x))
        return attr.Occlusion(net).attribute(x.detach(), shape, step, b, target, perturbations_per_eval=at_once)


# ---------------------------------------------------------------- controls


def _random(net, x, target, seed=0):
    """Uniform noise on [0, 1), given by the seed, the image and the target alone; it does not depend on the model."""
    rows = zip(x.detach().cpu().numpy(), target.tolist(), strict=True)
    draws = [np.random.default_rng([seed, zlib.crc32(row.tobytes()), t]).random((1, *x.shape[2:])) for row, t in rows]
    return torch.from_numpy(np.stack(draws)).to(x)


def _centre(net, x, target):
    """A bump in the middle, the same for all images: `metrics.centre`."""
    return metrics.centre(len(x), tuple(x.shape[2:])).to(x)[:, None]


def _edges(net, x, target):
    """Sobel magnitude of the image's mean over channels: what any edge detector finds (adebayo2018sanity)."""
    return torch.from_numpy(np.stack([sobel(grey) for grey in x.detach().mean(1).cpu().numpy()])).to(x)[:, None]


_TABLE = (
    Method("gradient", _gradient, "magnitude"),
    Method("gradient x input", _gradient_x_input, "sum"),
    Method("SmoothGrad", _smoothgrad, "magnitude"),
    Method("integrated gradients", _integrated_gradients, "sum"),
    Method("guided backprop", _guided_backprop, "magnitude"),
    Method("DeconvNet", _deconvnet, "magnitude"),
    Method("Grad-CAM", _grad_cam, "sum"),  # one channel, and so are the controls
    Method("guided Grad-CAM", _guided_grad_cam, "magnitude"),
    Method("occlusion", _occlusion, "mean"),
    Method("random", _random, "sum"),
    Method("centre", _centre, "sum"),
    Method("edges", _edges, "sum"),
)
METHODS: dict[str, Method] = {method.name: method for method in _TABLE}
CONTROLS = ("random", "centre", "edges")  # those that no network has a part in


class Cached:
    """What `make` gives for a model, kept until another model comes."""

    def __init__(self, make: Callable[[nn.Module], Any]):
        self.make, self.model, self.made = make, None, None

    def __call__(self, model: nn.Module) -> Any:
        if self.model is not model:
            self.made, self.model = self.make(model), model
        return self.made


def lrp_method(composite: Composite | Callable[..., Composite], seed: Seed | Tensor | None = None, **options):
    """LRP as a method `(model, x, target) -> (N, H, W)`: relevance summed over channels.

    composite: a composite, or its class with `options` for it (LRPError for options beside one that is made). A
    model is captured at its first call, and kept until another comes. A positive contrast is cut at 0 after the sum
    over channels, not before it.
    """
    if not isinstance(composite, Composite):
        composite = composite(**options)
    elif options:
        raise LRPError(f"{composite!r} is made already: give {', '.join(options)} to its class")
    late = isinstance(seed, Contrastive) and seed.positive
    start = replace(seed, positive=False) if late else seed
    explainer = Cached(lambda model: LRP(model, composite))

    def method(model: nn.Module, x: Tensor, target: Target = None) -> Tensor:
        R = explainer(model).attribute(x, target, seed=start).sum(1)
        return seed.finish(R) if late else R

    return method
