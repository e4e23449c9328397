"""Train the small networks that the notebooks explain: `python -m lrp.data.training [names] [--seed 0] [--force]`.

A recipe and a seed fix everything; the checkpoint and what is known about it go to `data/checkpoints`. What
was trained with the same recipe is left alone, and a worse network replaces a better one only with --force.
"""

import argparse
import hashlib
import json
import os
import sys
import time

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from ..errors import DataError
from . import models
from .datasets import VERSION, scenes

THREADS = 1  # part of the recipe: sums are taken in an order that depends on it; more gain little here
TEST = 2000  # scenes that decide how good a network is
RECIPES = {
    "scene_vgg": {"epochs": 18, "pool": 8000, "batch": 32, "rate": 2e-3, "decay": 0.02, "recolor": True},
    "scene_resnet": {"epochs": 14, "pool": 8000, "batch": 32, "rate": 3e-3, "decay": 0.05},
    "scene_lrn": {"epochs": 18, "pool": 8000, "batch": 32, "rate": 4e-3, "decay": 0.02, "recolor": True, "unit": 100},
    "scene_vit": {"epochs": 14, "pool": 6000, "batch": 32, "rate": 3e-3, "decay": 0.05, "larger": 0.25, "ink": 1.0},
}


def train(
    name, seed=0, epochs=16, pool=8000, batch=32, rate=1e-3, decay=0.02, recolor=False, unit=1, larger=0.0, ink=0.0
):
    """Train a scene network from scratch on scenes of one digit; returns it in eval mode.

    Every second epoch draws `pool` new scenes. They begin easy (large, strong digits, `larger` still where that is
    given) and reach the defaults of `scenes` before half time (Bengio 2009). AdamW (Loshchilov 2019), one cycle of
    the rate up to `rate`. With `recolor`, each batch is seen in other colours. Inputs and activations are `unit`
    times smaller while training than in the network that is returned. `ink` weighs a second task, see `Ink`. All
    random numbers come from `seed`, and the caller's are left as they were.
    """
    shuffle = torch.Generator().manual_seed(seed)
    size, normalize = models.side(name), models.normalizer(name)
    model = in_units(models.untrained(name, seed), unit)
    standardize(model, normalize(scenes(256, size=size, seed=seed).images) / unit)
    model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    reader = Ink(model) if ink else nn.Identity()
    optimizer = torch.optim.AdamW([*model.parameters(), *reader.parameters()], lr=rate, weight_decay=decay)
    steps = epochs * -(-pool // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    with torch.random.fork_rng(devices=[]), tqdm(total=steps, desc=name, disable=steps < 100) as bar:
        torch.default_generator.manual_seed(seed)  # dropout has no other source; the fork undoes it
        for epoch in range(epochs):
            if epoch % 2 == 0:
                options = difficulty(epoch / epochs, larger)
                drawn = scenes(pool, size=size, seed=seed, start=epoch // 2 * pool, **options)
                inputs = (normalize(drawn.images) / unit).contiguous(memory_format=torch.channels_last)
            for rows in torch.randperm(pool, generator=shuffle).split(batch):
                seen = recolored(inputs[rows], shuffle) if recolor else inputs[rows]
                loss = F.cross_entropy(model(seen), drawn.labels[rows, 0])
                if ink:
                    loss = loss + ink * reader.loss(drawn.masks[rows])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.3f}")
    if ink:
        reader.handle.remove()
    return in_units(model.to(memory_format=torch.contiguous_format), 1 / unit).eval()


class Ink(nn.Module):
    """A second task for a Vision Transformer while it is trained (Caruana 1997): each token says where ink is.

    A dense layer on the last tokens tells how much of each 4 x 4 pixels of their squares ink covers. The class of a
    scene says little to each of its tokens, and with it alone they begin to learn late. The trained network has no
    such layer.
    """

    def __init__(self, model):
        super().__init__()
        self.cells = model.patch_size // 4
        self.weight = nn.Parameter(torch.zeros(self.cells**2, model.hidden_dim))
        self.bias = nn.Parameter(torch.zeros(self.cells**2))
        self.handle = model.encoder.register_forward_hook(self._keep)

    def _keep(self, encoder, inputs, tokens):
        self.tokens = tokens[:, 1:]  # without the class token

    def loss(self, masks):
        """Cross-entropy of what the tokens of the last forward say, with the ink's masks (N, 1, H, W)."""
        side = round(self.tokens.shape[1] ** 0.5)
        said = F.linear(self.tokens, self.weight, self.bias).transpose(1, 2).unflatten(2, (side, side))
        cover = F.adaptive_avg_pool2d(masks.float(), self.cells * side)
        return F.binary_cross_entropy_with_logits(F.pixel_shuffle(said, self.cells), cover)


def recolored(inputs, generator):
    """Scenes as they could have been as well: channels permuted, and as often as not the negative."""
    sign = 1 - 2 * torch.randint(2, (), generator=generator)
    return (sign * inputs)[:, torch.randperm(3, generator=generator)]


def difficulty(progress, larger=0.0):
    """Options of `scenes` at a moment of training in [0, 1]: easy until 0.1, the defaults from 0.4 on.

    The digits are at first `larger` by so many scene heights.
    """
    t = min(max((progress - 0.1) / 0.3, 0.0), 1.0)
    larger = larger * (1 - t)
    return {"scale": (0.55 - 0.21 * t + larger, 0.7 - 0.1 * t + larger), "contrast": (0.45 - 0.17 * t, 0.6 - 0.15 * t)}


@torch.no_grad()
def in_units(model, unit):
    """The same network for inputs given in units of `unit`: g(x / unit) = f(x). Changes it and returns it.

    Adam (Kingma 2015) expects numbers of order 1, LRN's denominators those of Caffe. In a network of convolutions,
    ReLU, pooling and LRN, biases have the units of the input and alpha has those of x^-2; the last layer gives logits,
    which have no units.
    """
    if unit == 1:
        return model
    *layers, last = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        layer.bias /= unit
    last.weight *= unit
    for module in model.modules():
        if isinstance(module, nn.LocalResponseNorm):
            module.alpha *= unit**2
    return model


@torch.no_grad()
def standardize(model, inputs):
    """Start a network without BatchNorm as if it had one: mean 0, deviation 1 at each ReLU (Mishkin 2016)."""
    if not isinstance(model, (models.SceneVGG, models.SceneLRN)):
        return
    for layer in [*model.features, nn.Flatten(), *model.classifier.eval()]:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            deviation, mean = torch.std_mean(layer(inputs).transpose(0, 1).flatten(1), 1)
            layer.weight /= deviation.view(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias.copy_((layer.bias - mean) / deviation)
        inputs = layer(inputs)
    model.classifier[-1].weight *= 0.1  # begin undecided
    model.train()


def recipe(name, seed):
    """What decides the weights, and a hash of it: `{..., "hash": 12 hexadecimal digits}`."""
    all_of_it = RECIPES[name] | {
        "seed": seed,
        "threads": THREADS,
        "scenes": VERSION,
        "test": TEST,
        "network": [(key, *value.shape) for key, value in models.untrained(name).state_dict().items()],
    }
    digest = hashlib.sha256(json.dumps(all_of_it, sort_keys=True).encode()).hexdigest()
    return RECIPES[name] | {"seed": seed, "hash": digest[:12]}


def save(name, model, entry):
    """Write a checkpoint and its entry of `index.json`, each whole or not at all; returns the entry."""
    data = safetensors.torch.save({key: value.contiguous() for key, value in model.state_dict().items()})
    entry = entry | {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    _replace(models.CHECKPOINTS / f"{name}.safetensors", data)
    known = models.index() | {name: entry}
    _replace(models.CHECKPOINTS / "index.json", (json.dumps(known, indent=2, sort_keys=True) + "\n").encode())
    return entry


def _replace(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def make(name, seed=0, force=False):
    """Train, test and save one network, unless its checkpoint has this recipe already; returns its entry.

    Raises DataError when the new network is worse than the one it would replace, unless forced.
    """
    old, plan = models.index().get(name), recipe(name, seed)
    there = old is not None and (models.CHECKPOINTS / f"{name}.safetensors").exists()
    if there and old["recipe"]["hash"] == plan["hash"] and not force:
        print(f"{name}: already trained with this recipe, accuracy {old['accuracy']:.4f}")
        return old
    began = time.perf_counter()
    model = train(name, seed, **RECIPES[name])
    seconds = round(time.perf_counter() - began)
    test = scenes(TEST, size=models.side(name), split="test")
    row = models.report(model, models.normalizer(name)(test.images), test.labels[:, 0]).iloc[0]
    if there and row.accuracy < old["accuracy"] and not force:
        raise DataError(
            f"{name}: the new network reaches {row.accuracy:.4f}, the one in {models.CHECKPOINTS} "
            f"{old['accuracy']:.4f}: nothing was written; --force replaces it all the same"
        )
    entry = {"accuracy": row.accuracy, "interval": [round(row.low, 4), round(row.high, 4)], "n_test": TEST}
    entry |= {"recipe": plan, "seconds": seconds, "torch": torch.__version__}
    entry |= {"parameters": sum(p.numel() for p in model.parameters())}
    print(f"{name}: accuracy {row.accuracy:.4f} on {TEST} scenes never seen, {seconds} s")
    return save(name, model, entry)


def main(arguments=None):
    """Train what is named, by default every network; returns 1 when one could not be made, else 0."""
    parser = argparse.ArgumentParser(prog="python -m lrp.data.training", description="Train the committed checkpoints.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of weights, scenes and their order (default 0)")
    parser.add_argument("--force", action="store_true", help="train again, and replace a better network too")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in RECIPES]:
        parser.error(f"no network is called {', '.join(unknown)}: there are {', '.join(RECIPES)}")
    torch.set_num_threads(THREADS)
    failed = 0
    for name in options.names or RECIPES:
        try:
            make(name, options.seed, options.force)
        except DataError as error:
            print(f"make train: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
