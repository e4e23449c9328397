"""Methods for vision transformers against a two-block one written out by hand; and what all of them keep to."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lrp import InputError, LRPError, TargetError, composites
from lrp.data import datasets, models
from lrp.evaluate import attention
from lrp.evaluate.attention import TOKEN_METHODS, attentions, class_row, look

N, SIDE, PATCH, D, HEADS, K = 3, 3, 4, 8, 2, 4
TARGET = torch.tensor([2, 0, 3])
EXACT = composites.AttnLRP(gamma=0, gamma_linear=0, epsilon=1e-15)
FORMS = ("sdpa", "einsum", "heads first", "folded", "one axis more", "module")


class Block(nn.Module):
    """A block with norms first, whose attention is written in one of several forms."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.module = nn.MultiheadAttention(D, HEADS, batch_first=True) if form == "module" else None

    def share_weights(self):
        """Let nn.MultiheadAttention have those of the dense layers."""
        if self.module is not None:
            self.module.in_proj_weight, self.module.in_proj_bias = self.qkv.weight, self.qkv.bias
            self.module.out_proj.weight, self.module.out_proj.bias = self.out.weight, self.out.bias

    def attend(self, z):
        if self.module is not None:
            return self.module(z, z, z, need_weights=False)[0]
        order = (2, 1, 0, 3, 4) if self.form == "heads first" else (2, 0, 1, 3, 4)
        q, k, v = self.qkv(z).unflatten(-1, (3, HEADS, -1)).permute(0, 3, 2, 1, 4).permute(order).unbind(0)
        if self.form == "sdpa":
            o = F.scaled_dot_product_attention(q, k, v)
        elif self.form == "einsum":
            A = torch.softmax(torch.einsum("nhld,nhsd->nhls", q, k) * (D / HEADS) ** -0.5, -1)
            o = torch.einsum("nhls,nhsd->nhld", A, v)
        elif self.form == "folded":
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            o = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, -1), v).unflatten(0, (-1, HEADS))
        elif self.form == "one axis more":
            q, k, v = (t.unsqueeze(1) for t in (q, k, v))
            o = (torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v).squeeze(1)
        else:
            o = torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
            o = o.transpose(0, 1) if self.form == "heads first" else o
        return self.out(o.transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class ViT(nn.Module):
    """A small Vision Transformer; `reads` is what its head takes from the tokens."""

    def __init__(self, form="sdpa", side=SIDE, reads=lambda z: z[:, 0], norm=True):
        super().__init__()
        self.patches, self.reads = nn.Conv2d(3, D, PATCH, PATCH), reads
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, D)), nn.Parameter(torch.zeros(1, 1 + side**2, D))
        self.blocks = nn.ModuleList([Block(form), Block(form)])
        self.ln, self.head = nn.LayerNorm(D), nn.Linear(D, K)
        if not norm:
            for block in self.blocks:
                block.ln_1 = nn.Identity()
        generator = torch.Generator().manual_seed(0)
        self.double().eval()
        shared = {name: p for name, p in self.named_parameters() if ".module." not in name}
        for name in sorted(shared):
            nn.init.normal_(shared[name], 0.2, 0.4, generator=generator)
        for block in self.blocks:
            block.share_weights()

    def forward(self, x):
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(x.shape[0], -1, -1), z], 1) + self.places
        for block in self.blocks:
            z = block(z)
        return self.head(self.reads(self.ln(z)))


def images(n=N, side=SIDE * PATCH):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written_out(model, x, target=TARGET, relevance=False):
    """A of both blocks, what the last one reads, and the gradient of the target's output with respect to each.

    relevance: the gradient of another function of the same value, times the value, which is AttnLRP with LRP-0: a
    product hands on half of each gradient, deviations are constants, and gelu(x) is x times a constant.
    """

    def stop(t):
        return t.detach() if relevance else t

    def product(equation, a, b):
        whole = torch.einsum(equation, a, b)
        half = torch.einsum(equation, a, b.detach()) + torch.einsum(equation, a.detach(), b)
        return half / 2 if relevance else whole

    def norm(layer, z):
        c = z - z.mean(-1, keepdim=True)
        return layer.weight * c / stop((c**2).mean(-1, keepdim=True) + layer.eps).sqrt() + layer.bias

    def dense(layer, z):
        return torch.einsum("...i,oi->...o", z, layer.weight) + layer.bias

    pieces = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(2, 3)
    z = torch.einsum("ncpij,dcij->npd", pieces, model.patches.weight) + model.patches.bias
    z = torch.cat([model.token.repeat(len(x), 1, 1), z], 1) + model.places
    maps, d = [], D // HEADS
    for block in model.blocks:
        read = norm(block.ln_1, z)
        q, k, v = dense(block.qkv, read).view(len(x), -1, 3, HEADS, d).unbind(2)
        scores = product("nlhd,nshd->nhls", q, k) / d**0.5
        e = (scores - scores.detach().amax(-1, keepdim=True)).exp()
        maps.append(e / e.sum(-1, keepdim=True))
        z = z + dense(block.out, product("nhls,nshd->nlhd", maps[-1], v).reshape(len(x), -1, D))
        h = dense(block.up, norm(block.ln_2, z))
        z = z + dense(block.down, h * stop(0.5 * (1 + torch.erf(h / 2**0.5))))
    f = dense(model.head, norm(model.ln, z)[:, 0])[range(len(x)), target]
    values = [*maps, read]
    gradients = torch.autograd.grad((f / f.detach() if relevance else f).sum(), values)
    if relevance:
        gradients = [g * value for g, value in zip(gradients, values, strict=True)]
    return [t.detach() for t in values], gradients


def same(a, b, tolerance=1e-9):
    a, b = a.detach(), b.detach()
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def as_map(values):
    """Patches (N, 9) as the method shows them: bilinear, at the image's size."""
    grid = values.view(-1, 1, SIDE, SIDE)
    return F.interpolate(grid, (SIDE * PATCH, SIDE * PATCH), mode="bilinear", align_corners=False)[:, 0]


def chefer(model, x, target=TARGET):
    """The product over both blocks as in the authors' program, from gradients and relevance written out."""
    values, gradients = written_out(model, x, target)
    _, R = written_out(model, x, target, relevance=True)
    first, last = (torch.relu(g * r).sum(1) / HEADS for g, r in zip(gradients[:2], R[:2], strict=True))
    eye = torch.eye(values[0].shape[-1], dtype=torch.float64)
    return torch.einsum("nlm,nms->nls", last + eye, first + eye)[:, 0, 1:]


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize("form", FORMS)
def test_attention_and_its_gradient_against_a_network_written_out(form):
    model, x = ViT(form), images()
    values, gradients = written_out(model, x)
    blocks = attentions(model, x, TARGET)
    assert len(blocks) == 2 and blocks[0].weights.shape == (N, HEADS, 10, 10)
    for block, A, g in zip(blocks, values[:2], gradients[:2], strict=True):
        same(block.weights, A)
        same(block.gradient, g)
    tokens = look(model, x, TARGET).tokens
    same(tokens.values, values[2])
    same(tokens.gradient, gradients[2])


@pytest.mark.parametrize("form", FORMS)
def test_methods_against_a_network_written_out(form):
    model, x = ViT(form), images()
    (A1, A2, Z), (*_, g) = written_out(model, x)
    same(TOKEN_METHODS["raw attention"](model, x, TARGET), as_map((A2.sum(1) / HEADS)[:, 0, 1:]))
    first, last = (A.sum(1) / HEADS / 2 + torch.eye(10) / 2 for A in (A1, A2))
    rolled = torch.einsum("nlm,nms->nls", last, first)
    same(rolled.sum(2), torch.ones(N, 10).double())
    same(TOKEN_METHODS["attention rollout"](model, x, TARGET), as_map(rolled[:, 0, 1:]))
    same(TOKEN_METHODS["Chefer et al."](model, x, TARGET, composite=EXACT), as_map(chefer(model, x)))
    cam = torch.einsum("npd,nd->np", Z[:, 1:], g[:, 1:].mean(1)).relu()
    assert cam.any()
    same(TOKEN_METHODS["Grad-CAM of tokens"](model, x, TARGET), as_map(cam))


def test_the_row_of_the_class_token():
    """It is that of the product with the last block to the left, and sums to 1 where all rows do."""
    maps = torch.rand(3, N, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    maps = maps / maps.sum(-1, keepdim=True)
    row = class_row(list(maps))
    same(row, (maps[2] @ maps[1] @ maps[0])[:, 0])
    same(row.sum(1), torch.ones(N).double())


def test_chefer_takes_attnlrp_by_default():
    model, x = ViT(), images()
    method = TOKEN_METHODS["Chefer et al."]
    same(method(model, x, TARGET), method(model, x, TARGET, composite=composites.AttnLRP()), 1e-12)
    assert not torch.allclose(method(model, x, TARGET), method(model, x, TARGET, composite=EXACT))
    with pytest.raises(LRPError, match=r"give it matmul=rules\.Uniform"):
        method(model, x, TARGET, composite=composites.CPLRP())


def test_behind_the_last_block_patches_have_no_gradient():
    """Why Grad-CAM takes what the last block reads."""
    model, x = ViT(), images()
    model.reads = lambda z: (kept.append(z), z.retain_grad(), z[:, 0])[-1]
    kept = []
    model(x).sum().backward()
    assert kept[0].grad[:, 0].any() and not kept[0].grad[:, 1:].any()


# ---------------------------------------------------------------- what all keep to


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_permuted_patches_permute_the_map(name):
    model, x, order = ViT(), images(), torch.randperm(9, generator=torch.Generator().manual_seed(2))
    R = TOKEN_METHODS[name].raw(look(model, x, TARGET))
    shuffled = copy.deepcopy(model)
    shuffled.places.data[:, 1:] = model.places.data[:, 1:][:, order]
    pieces = x.unflatten(3, (SIDE, PATCH)).unflatten(2, (SIDE, PATCH)).movedim(4, 3).flatten(2, 3)[:, :, order]
    mixed = pieces.unflatten(2, (SIDE, SIDE)).movedim(3, 4).flatten(4).flatten(2, 3)
    same(TOKEN_METHODS[name].raw(look(shuffled, mixed, TARGET)), R[:, order], 1e-8)
    assert not torch.allclose(R, R[:, order])


@pytest.mark.parametrize(("name", "specific"), list(zip(TOKEN_METHODS, (False, False, True, True), strict=True)))
def test_who_depends_on_the_target(name, specific):
    model, x, method = ViT(), images(), TOKEN_METHODS[name]
    assert torch.equal(method(model, x, 0), method(model, x, 1)) is not specific
    same(method(model, x), method(model, x, model(x).argmax(1)), 1e-12)


@pytest.mark.parametrize("form", ["sdpa", "heads first", "folded"])
@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_a_batch_gives_the_maps_of_single_images(name, form):
    model, x = ViT(form), images()
    maps = TOKEN_METHODS[name](model, x, TARGET)
    assert maps.shape == (N, 12, 12) and maps.dtype == torch.float64 and not maps.requires_grad
    for i in range(N):
        same(TOKEN_METHODS[name](model, x[i : i + 1], int(TARGET[i])), maps[i : i + 1], 1e-8)


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_the_model_is_only_read(name):
    model, x = ViT(), images()
    model.head.bias.grad = torch.ones(K).double()
    before, image, random = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
    with torch.inference_mode():
        first = TOKEN_METHODS[name](model, x, TARGET)
    assert torch.equal(first, TOKEN_METHODS[name](model, x, TARGET))
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items()) and torch.equal(x, image)
    assert all(p.requires_grad and (p.grad is None) is (p is not model.head.bias) for p in model.parameters())
    assert torch.equal(model.head.bias.grad, torch.ones(K).double()) and torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks or m._backward_hooks or m.training for m in model.modules())


def test_frozen_parameters_do_no_harm():
    model, x = ViT(), images()
    maps = TOKEN_METHODS["Chefer et al."](model, x, TARGET)
    assert torch.equal(TOKEN_METHODS["Chefer et al."](model.requires_grad_(False), x, TARGET), maps)


# ---------------------------------------------------------------- what is refused


class Wide(nn.Module):
    """Two images side by side: as many tokens as no square of patches has."""

    def __init__(self):
        super().__init__()
        self.vit = ViT(side=3)
        self.vit.places = nn.Parameter(torch.zeros(1, 19, D).double())

    def forward(self, x):
        return self.vit(torch.cat([x, x], 3))


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10), nn.Softmax(1)).double().eval()


def swin():
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2]).double().eval()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (convolutional, "Sequential has no attention .*: take LRP"),
        (swin, r"SwinTransformer has weights \(.*, 4, 4\): .* one class token and a square of patches; take LRP"),
        (lambda: Wide().eval(), r"Wide has weights \(3, 2, 19, 19\)"),
        (lambda: ViT(reads=lambda z: z.mean(1)), "the head of ViT reads more tokens than the first"),
        (lambda: ViT(reads=lambda z: z[:, -1]), "the head of ViT reads more tokens than the first"),
        (lambda: ViT().train(), "train"),
    ],
)
@pytest.mark.parametrize("name", ["raw attention", "Chefer et al."])
def test_other_networks_are_refused(make, message, name):
    with pytest.raises(InputError, match=message):
        TOKEN_METHODS[name](make(), images(), TARGET)


def test_other_errors():
    model, x = ViT(), images()
    with pytest.raises(InputError, match="images"):
        attentions(model, x[:, 0])
    with pytest.raises(TargetError):
        attentions(model, x, K)
    with pytest.raises(InputError, match=r"no LayerNorm makes what `blocks\.1\..*` reads"):
        TOKEN_METHODS["Grad-CAM of tokens"](ViT(norm=False), x, TARGET)
    method = attention.TokenMethod("broken", lambda seen: seen.blocks[0].weights[:, 0, 0, 1:] / 0)
    with pytest.raises(LRPError, match="broken is not finite"):
        method(model, x)


# ---------------------------------------------------------------- other people's networks


@torch.no_grad()
def test_scene_vit():
    scenes = datasets.scenes(4, split="test", start=7000)
    model, x = models.load("scene_vit"), models.normalizer("scene_vit")(scenes.images)
    read = {}
    handles = [
        layer.ln_1.register_forward_hook(lambda m, i, z, layer=layer: read.update({layer.self_attention: z}))
        for layer in model.encoder.layers
    ]
    model(x)
    for handle in handles:
        handle.remove()
    for block, (module, z) in zip(attentions(model, x), read.items(), strict=True):
        same(block.weights, module(z, z, z, average_attn_weights=False)[1], 1e-4)
    for name, method in TOKEN_METHODS.items():
        maps = method(model, x, scenes.labels[:, 0])
        assert maps.shape == (4, 64, 64) and torch.isfinite(maps).all() and (maps >= 0).all() and maps.any(), name
        assert (maps.flatten(1).std(1) > 0).sum() >= 3, name


@torch.no_grad()
def test_timms_vit():
    timm = pytest.importorskip("timm", reason="needs timm, which has the network")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
        nn.init.normal_(model.head.weight)
    x, unfused, seen = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)), copy.deepcopy(model), []
    for block in unfused.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda m, i, A: seen.append(A))
    unfused(x)
    for block, A in zip(attentions(model, x), seen, strict=True):
        same(block.weights, A, 1e-4)
    for name, method in TOKEN_METHODS.items():
        maps = method(model, x, 3)
        assert maps.shape == (1, 224, 224) and torch.isfinite(maps).all() and maps.any(), name
