"""The masked network against autograd on the user's model, a slow forward pass with hooks, and double backward."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Net, sound
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lrp import UnsupportedOperation
from lrp.data import datasets, models
from lrp.data.networks import Inception
from lrp.network.tracing import capture
from lrp.studies import lrn
from lrp.studies.masked import MaskedNetwork


def vgg():
    return models.SceneVGG((6, "M", 8, "M", 8, 10, "M"), hidden=12, classes=5, side=32)


def resnet(block):
    model = ResNet(block, [1, 2, 1, 1], num_classes=5)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    return model


def squeezenet():
    """Fire modules, overlapping pools with ceil_mode, adaptive pooling of maps of classes."""
    return torchvision.models.squeezenet1_1(num_classes=5)


def inception():
    """Four branches and a concatenation, a pool of stride 1, a pad, a norm that cannot be folded."""
    return Net(
        lambda m, x: m.fc(m.pool(F.relu(m.norm(m.mix(F.pad(m.stem(x), (1, 0, 2, 1), value=0.3))))).flatten(1)),
        stem=nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)),
        mix=Inception(8, 3, 4, 5, 2, 3, 4), norm=nn.BatchNorm2d(15), pool=nn.AdaptiveMaxPool2d(2),
        fc=nn.Linear(60, 5),
    )  # fmt: skip


def odds():
    """A shared ReLU, differences, constants added and multiplied, chunks, leaky slopes, clamps, upsampling."""

    def run(m, x):
        a, b = m.conv(x * 1.5 - 0.1).chunk(2, 1)
        a, b = m.relu(a), m.relu(b)
        h = torch.cat([m.leaky(m.down(a - 0.7 * b)), m.prelu(m.down(b + 0.2))], 1)
        h = F.interpolate(F.avg_pool2d(h, 3, 2, 1, ceil_mode=True), size=(7, 7), mode="bilinear")
        h = torch.maximum(h, h.new_full((1,), 0.1)) + torch.clamp(h, -0.2, 0.3)
        return m.fc(m.drop(h.view(h.size(0), -1)) / 2)

    return Net(
        run, conv=nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), relu=nn.ReLU(),
        down=nn.Conv2d(4, 3, 3, 2), leaky=nn.LeakyReLU(0.1), prelu=nn.PReLU(3), fc=nn.Linear(6 * 49, 5),
        drop=nn.Dropout(),
    )  # fmt: skip


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.BatchNorm1d(9), nn.ReLU6(), nn.Linear(9, 5))


def mobilenet():
    """Depthwise convolutions and ReLU6, with and without a skip."""
    blocks = [[1, 8, 1, 1], [2, 16, 2, 2]]
    return torchvision.models.MobileNetV2(num_classes=5, width_mult=0.5, inverted_residual_setting=blocks)


NETWORKS = {
    "vgg": vgg, "basic block": lambda: resnet(BasicBlock), "bottleneck": lambda: resnet(Bottleneck),
    "squeezenet": squeezenet, "inception": inception, "mobilenet": mobilenet, "odds": odds, "dense": dense,
}  # fmt: skip
SIDES = {"basic block": 16, "bottleneck": 16, "squeezenet": 24, "mobilenet": 16}  # others 32


def build(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = sound(make())
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(p, 0, 0.2)
        return model


def images(n=2, side=32, seed=1):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeds(n, target=1, classes=5):
    """1 at the target, a class or one for each sample: (n, classes)."""
    return F.one_hot(torch.as_tensor(target).expand(n), classes).double()


def random_masks(net, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(m.shape, generator=g, dtype=m.dtype) for m in net.ones()]


def gradient(model, x, target=1):
    x = x.clone().requires_grad_()
    f = (model(x) * seeds(len(x), target)).sum(1)
    return torch.autograd.grad(f.sum(), x)[0], f.detach()


@pytest.fixture(params=list(NETWORKS))
def case(request):
    """A network and images that fit it, large where a ReLU6 shall saturate."""
    model = build(NETWORKS[request.param])
    clipped = any(isinstance(m, nn.ReLU6) for m in model.modules())
    return model, images(side=SIDES.get(request.param, 32)) * (20 if clipped else 1)


def test_the_mapping_without_masks_is_the_gradient_and_the_rest_is_biases(case):
    """Acceptance tests 1, 2 and 5: W(1) = dF/dx, F = y(1) + b_eff, zero masks give zero."""
    model, x = case
    net = MaskedNetwork(capture(model), x)
    target = model(x).argmax(1)
    (expected, f), seed = gradient(model, x, target), seeds(2, target)
    W, b_eff = net.gradient(seed)
    size = expected.abs().max()
    assert torch.allclose(W, expected, rtol=1e-10, atol=1e-10 * size) and size > 0
    assert torch.allclose((W * x).sum((1, 2, 3)) + b_eff, f, rtol=1e-10, atol=1e-10 * float(f.abs().max()))
    assert b_eff.abs().min() > 0
    if any(isinstance(m, nn.ReLU6) for m in model.modules()):
        assert any(net.steps[node].offset is not None for node in net.masked)  # units that saturate
    assert torch.allclose(net.mapping(seed, net.ones()), expected, rtol=1e-10, atol=1e-10 * size)
    zero = net.mapping(seed, [torch.zeros_like(m) for m in net.ones()])
    if "maximum" not in net.graph.names:  # which is a way past the masks
        assert not zero.any()


def test_one_pass_forward_gives_the_derivative_by_the_masks(case):
    """<V, W(m)> is linear in each layer's masks: two evaluations give the derivative to rounding."""
    model, x = case
    net, seed = MaskedNetwork(capture(model), x), seeds(2, model(x).argmax(1))
    V, masks = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype), random_masks(net)
    leaves = [m.clone().requires_grad_() for m in masks]
    found, sizes = torch.autograd.grad((V * net.mapping(seed, leaves)).sum(), leaves), []
    for layer in range(0, len(masks), max(1, len(masks) // 3)):
        step = random_masks(net, seed=7)[layer] - 0.5
        moved = [[m + s * step if i == layer else m for i, m in enumerate(masks)] for s in (1, -1)]
        ends = [(V * net.mapping(seed, m)).sum() for m in moved]
        size = float((found[layer] * step).abs().sum())
        sizes.append(size)
        assert torch.allclose((found[layer] * step).sum(), (ends[0] - ends[1]) / 2, rtol=1e-9, atol=1e-9 * size)
    assert max(sizes) > 0


# ---------------------------------------------------------------- against slower ways


def slow(model, x, masks):
    """y(m) of a network of modules, without functional ReLUs: hooks keep gates and winners of x; biases are dropped."""
    gates, handles, order = [], [], iter(masks)

    def note(module, inputs, output):
        if isinstance(module, nn.ReLU):
            gates.append(output > 0)
        else:
            gates.append(F.max_pool2d(inputs[0], module.kernel_size, module.stride, module.padding,
                                      ceil_mode=module.ceil_mode, return_indices=True)[1])  # fmt: skip

    def replay(module, inputs, output):
        kept, h = gates.pop(0), inputs[0]
        if isinstance(module, nn.ReLU):
            m = next(order)
            return h * kept * m.view(*m.shape, *[1] * (h.dim() - 2))
        return h.flatten(2).gather(2, kept.flatten(2)).view(kept.shape)

    kinked = [m for m in model.modules() if isinstance(m, (nn.ReLU, nn.MaxPool2d))]
    for module in kinked:
        module.inplace = False
    for hook, batch in ((note, x), (replay, x)):
        handles = [m.register_forward_hook(hook) for m in kinked]
        if hook is replay:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.bias.data.zero_(), module.running_mean.zero_()
                elif getattr(module, "bias", None) is not None:
                    module.bias.data.zero_()
        with torch.no_grad():
            y = model(batch)
        for handle in handles:
            handle.remove()
    return y


@pytest.mark.parametrize("name", ["vgg", "basic block", "bottleneck", "squeezenet"])
def test_the_attribution_sums_to_the_masked_output(name):
    """Acceptance test 2: sum A(m) = y(m), with y(m) from the user's own modules, hooked."""
    x, model = images(side=SIDES.get(name, 32)), build(NETWORKS[name])
    net = MaskedNetwork(capture(model), x)
    masks, target = random_masks(net), model(x).argmax(1)
    W = net.mapping(seeds(2, target), masks)
    y = slow(model, x, masks).gather(1, target[:, None])[:, 0]
    assert torch.allclose((W * x).sum((1, 2, 3)), y, rtol=1e-9, atol=1e-10 * float((W * x).abs().sum()))


def hand_written(p, x, masks):
    """A net with a skip, a concatenation and a pool; the masked linear one, by hand: y, differentiable twice."""

    def layer(h, z, name, m):
        w, b = p[name]
        z = F.conv2d(z, w, b, padding=1)
        gate = (z > 0).double()
        return F.conv2d(h, w, padding=1) * gate * m[:, :, None, None], z * gate

    h, z = x, x.detach()
    h, z = layer(h, z, "a", masks[0])
    h2, z2 = layer(h, z, "b", masks[1])
    h, z = torch.cat([h + h2, h2], 1), torch.cat([z + z2, z2], 1)
    z, winners = F.max_pool2d(z, 3, 2, return_indices=True)
    h = h.flatten(2).gather(2, winners.flatten(2)).view(z.shape)
    return F.linear(h.flatten(1), p["c"][0])[:, 1]


def test_masks_have_the_gradient_of_double_backward():
    g = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    p = {"a": (rand(4, 3, 3, 3), rand(4)), "b": (rand(4, 4, 3, 3), rand(4)), "c": (rand(5, 8 * 9), rand(5))}

    def run(m, x):
        h = F.relu(m.a(x))
        h2 = F.relu(m.b(h))
        return m.c(F.max_pool2d(torch.cat([h + h2, h2], 1), 3, 2).flatten(1))

    parts = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), "c": nn.Linear(72, 5)}
    model = Net(run, **parts).double().eval()
    for name, (w, b) in p.items():
        parts[name].weight.data, parts[name].bias.data = w, b
    x = images(3, 8)
    net = MaskedNetwork(capture(model), x)
    masks = [m.requires_grad_() for m in random_masks(net)]

    def loss(W):
        P = W * x
        return (P.relu().sum((1, 2, 3)) / P.abs().sum((1, 2, 3))).square().sum() + (W * W).mean()

    leaf = x.clone().requires_grad_()
    W = torch.autograd.grad(hand_written(p, leaf, masks).sum(), leaf, create_graph=True)[0]
    ours = net.mapping(seeds(3), masks)
    assert torch.allclose(ours, W, rtol=1e-11, atol=1e-12)
    expected, found = torch.autograd.grad(loss(W), masks), torch.autograd.grad(loss(ours), masks)
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-13)


# ---------------------------------------------------------------- nodes


def test_each_call_of_a_relu_has_masks_of_its_own_over_channels_or_features():
    model = build(odds)
    masked = MaskedNetwork(capture(model), images()).masked
    assert {n.name: c for n, c in masked.items()} == {"relu": 4, "relu#2": 4, "leaky": 3, "prelu": 3, "add#2": 6}
    words = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).double().eval()
    net = MaskedNetwork(capture(words), torch.randn(2, 3, 4).double())
    assert list(net.masked.values()) == [6]
    m = random_masks(net)
    V = torch.randn(2, 3, 4).double()
    assert torch.autograd.gradcheck(lambda m: net.mapping(seeds(2, classes=2), [m]) * V, m[0].requires_grad_())


@pytest.mark.parametrize("layer", [nn.LocalResponseNorm(5, 0.1), lrn.WithinChannelLRN(3, 0.1)])
def test_a_frozen_lrn_is_a_constant_scale(layer):
    below, above = (nn.Conv2d(3, 6, 3), nn.ReLU()), (nn.Conv2d(6, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5))
    model = build(lambda: nn.Sequential(*below, layer, *above))
    x = images()
    with pytest.raises(UnsupportedOperation, match=r"`2` is a local response normalisation.*freeze_lrn=True"):
        MaskedNetwork(capture(model), x)
    net = MaskedNetwork(capture(model), x, freeze_lrn=True)
    h = model[:2](x).detach()
    scale = torch.where(h > 0, layer(h) / h.clamp(min=1e-300), 0)

    def frozen(x):
        return model[3:](model[:2](x) * scale)

    expected, f = gradient(frozen, x)
    W, b_eff = net.gradient(seeds(2))
    assert net.frozen == ["2"] and torch.allclose(W, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose((W * x).sum((1, 2, 3)) + b_eff, f) and torch.allclose(f, model(x)[:, 1])
    assert not torch.allclose(W, gradient(model, x)[0], rtol=1e-2)


def test_what_is_not_piecewise_linear_is_refused_by_name():
    def refused(call, match, **parts):
        with pytest.raises(UnsupportedOperation, match=match):
            MaskedNetwork(capture(Net(call, **parts).double().eval()), torch.rand(2, 3, 4, 4).double())

    conv, relu = nn.Conv2d(3, 3, 1), nn.ReLU()
    refused(lambda m, x: m.act(m.conv(x)), r"node `act` calls gelu, .*not piecewise linear.*lrp\.LRP", conv=conv,
            act=nn.GELU())  # fmt: skip
    refused(lambda m, x: F.silu(m.relu(x)), "`silu` calls silu", relu=relu)
    refused(lambda m, x: m.relu(x) * torch.sigmoid(m.conv(x)), "`sigmoid` calls sigmoid", relu=relu, conv=conv)
    refused(lambda m, x: m.relu(x) * F.hardsigmoid(m.conv(x)), "`mul`.*squeeze-excitation.*in the place of the gate",
            relu=relu, conv=conv)  # fmt: skip
    refused(lambda m, x: m.conv(x) * torch.tanh(m.conv(x).square()), "`square` calls square", conv=conv)
    refused(lambda m, x: m.norm(m.relu(x)), "`norm` calls groupnorm", relu=relu, norm=nn.GroupNorm(1, 3))
    refused(lambda m, x: m.relu(x).flatten(1).softmax(1), "`softmax`.*take the softmax off", relu=relu)
    refused(lambda m, x: torch.cat(m.relu(x).chunk(3, 1)[:2], 1), "several tensors", relu=relu)
    refused(lambda m, x: m.conv(x), "no ReLU, so there is no filter to mask", conv=conv)
    refused(lambda m, x: m.relu(x).sum(0), "does not have the samples of the batch on its first axis", relu=relu)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "cifar_resnet20", "bvlc_googlenet_rgb"])
def test_networks_that_others_trained_are_linear_at_an_image(lrp_data, name):
    """W(1) is the gradient where nothing is frozen; F = y(1) + b_eff always. (In float32, units at zero may differ.)"""
    model, has_lrn = models.load(name).double(), "googlenet" in name
    photos = list(datasets.photographs(["cat", "coffee"], size=models.side(name)).values())
    x = models.normalizer(name)(torch.stack(photos)).double()
    if has_lrn:
        with pytest.raises(UnsupportedOperation, match="freeze_lrn=True"):
            MaskedNetwork(capture(model), x)
    net = MaskedNetwork(capture(model), x, freeze_lrn=has_lrn)
    seed = nn.functional.one_hot(net.output.argmax(1), net.output.shape[1]).to(x)
    W, b_eff = net.gradient(seed)
    logit = (net.output * seed).sum(1)
    assert torch.allclose((W * x).sum((1, 2, 3)) + b_eff, logit, rtol=1e-10, atol=1e-9)
    x = x.clone().requires_grad_()
    expected = torch.autograd.grad((model(x) * seed).sum(), x)[0]
    assert torch.allclose(W, expected, rtol=1e-8, atol=1e-10) == (not has_lrn)
    assert bool(net.frozen) == has_lrn
