"""Does it balance on every convolutional classifier of torchvision? `python -m lrp.coverage [names]` asks them all.

Each network gets random weights, biases and BatchNorm statistics: conservation is a property of rules and wiring,
not of training. EpsilonPlus explains the predicted class in float32. The peers get the same networks, the rules they
have under that name, and the best canonizer they ship; both are optional.
"""

import argparse
import copy
import gc
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torchvision
from torch import nn
from tqdm import tqdm

from lrp import composites
from lrp.engine import LRP
from lrp.errors import LRPError

TABLE = Path(__file__).resolve().parents[2] / "figures" / "coverage.md"
BALANCED, CONSERVED = 1e-4, 1e-3
TRANSFORMERS = ("vit_", "swin_", "maxvit")


def names() -> list[str]:
    """torchvision's convolutional classifiers, by name."""
    every = torchvision.models.list_models(module=torchvision.models)
    return [name for name in every if not name.startswith(TRANSFORMERS)]


def network(name: str, seed: int = 0) -> nn.Module:
    """A classifier of torchvision with random weights, biases and BatchNorm statistics, in eval mode."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about how two old networks draw their weights
        torch.manual_seed(seed)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.01)
    return model.eval()


def images(n: int = 2, size: int = 96, seed: int = 0) -> torch.Tensor:
    """Random images (N, 3, size, size)."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def examine(model: nn.Module, x: torch.Tensor) -> dict[str, object]:
    """What EpsilonPlus does on this network: how well the books balance, and where relevance went."""
    start = time.perf_counter()
    absorb = LRP(model, composites.EpsilonPlus()).explain(x)
    seconds = time.perf_counter() - start
    exclude = LRP(model, composites.EpsilonPlus(bias="exclude")).explain(x)
    return {
        "imbalance": _worst(absorb.seed, absorb.received + _kept(absorb)),
        "biases keep": float(absorb.share("bias").mean()),
        "sum / seed": float((exclude.received / exclude.seed).mean()),
        "conserved": _worst(exclude.seed, exclude.received) <= CONSERVED,
        "stabiliser keeps": float(exclude.share("stabiliser").mean()),
        "lost": float(exclude.share("lost").mean()),
        "seconds": seconds,
    }


def _kept(e) -> torch.Tensor:
    return (e.share("bias") + e.share("stabiliser")) * e.seed


def _worst(seed: torch.Tensor, total: torch.Tensor) -> float:
    return float(((seed - total) / seed).abs().max())


def zennit_sum(model: nn.Module, x: torch.Tensor) -> float:
    """zennit's EpsilonPlus without biases, from a one-hot seed: sum of relevance per image, 1 if conserved."""
    from zennit import attribution, canonizers
    from zennit import composites as theirs
    from zennit import torchvision as own

    kind = type(model).__name__
    canonizer = {"ResNet": own.ResNetCanonizer, "VGG": own.VGGCanonizer}.get(kind, canonizers.SequentialMergeBatchNorm)
    composite = theirs.EpsilonPlus(zero_params="bias", canonizers=[canonizer()])
    one_hot = nn.functional.one_hot(model(x).argmax(1), 1000).to(x)
    with attribution.Gradient(model=model, composite=composite) as attributor:
        _, relevance = attributor(x.clone().requires_grad_(), one_hot)
    return float(relevance.detach().sum() / len(x))


def captum_sum(model: nn.Module, x: torch.Tensor) -> float:
    """captum's LRP with its default rules: sum of relevance over the sum of logits, 1 if conserved."""
    from captum.attr import LRP as Captum

    logits, target = model(x).max(1)
    return float((Captum(model).attribute(x.clone().requires_grad_(), target=target).sum() / logits.sum()).detach())


def attempt(method: Callable, model: nn.Module, x: torch.Tensor) -> str:
    """A peer's number as text, or the name of the error it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f"{method(copy.deepcopy(model), x):.4g}"
    except Exception as error:
        return type(error).__name__


def row(name: str, size: int = 96, peers: bool = True) -> dict[str, object]:
    """One line of the table; an LRPError of ours is a finding, too."""
    model, x = network(name), images(size=size)
    try:
        found = examine(model, x)
    except LRPError as error:
        found = {"imbalance": float("nan"), "error": str(error)}
    theirs = {"zennit": attempt(zennit_sum, model, x), "captum": attempt(captum_sum, model, x)} if peers else {}
    return {"architecture": name, **found, **theirs}


def version(package) -> str:
    """A package's release, without the build it came from."""
    return package.__version__.split("+")[0]


def as_markdown(table: pd.DataFrame, size: int) -> str:
    """The table with what it means, ready to be read."""
    balanced, conserved = table["imbalance"] <= BALANCED, table["conserved"] == True  # noqa: E712 (NaN is neither)
    lines = [
        "# Coverage",
        "",
        f"{len(table)} convolutional classifiers of torchvision {version(torchvision)} with random weights, biases and "
        f"BatchNorm statistics, two random images of {size} pixels, float32, torch {version(torch)}; written by "
        "`make coverage`.",
        "",
        f"**Balanced: {int(balanced.sum())} of {len(table)}** (the seed equals input + biases + stabilisers to "
        f"{BALANCED:g} of it, for each image). **Conserved without biases: {int(conserved.sum())} of {len(table)}** "
        f'(with `bias="exclude"` the input\'s sum equals the seed to {CONSERVED:g}).',
        "",
    ]
    for _, found in table[(table["conserved"] == False)].iterrows():  # noqa: E712
        where = f"stabilisers keep {found['stabiliser keeps']:.5f} and rounding takes {found['lost']:.5f}"
        lines += [
            f"Exception: {found['architecture']} ends at {found['sum / seed']:.5f} of the seed. Without biases the "
            f"contributions in its dense layers nearly cancel, and the ε-rule divides by what is left: {where}, as the "
            "ledger and a warning say.",
            "",
        ]
    if "zennit" in table:
        right = {peer: int((pd.to_numeric(table[peer], errors="coerce") - 1).abs().le(CONSERVED).sum())
                 for peer in ("zennit", "captum")}  # fmt: skip
        lines += [
            f"zennit (EpsilonPlus without biases, its canonizers, one-hot seed) is right on {right['zennit']}, captum "
            f"(its default rules, biases absorb) on {right['captum']}: their column should read 1; an error's name "
            "means that it raised.",
            "",
        ]
    columns = ["architecture", "balanced", "imbalance", "biases keep", "sum / seed", "seconds"]
    columns += [peer for peer in ("zennit", "captum") if peer in table]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (_, found), good in zip(table.iterrows(), balanced, strict=True):
        cells = {
            "balanced": "yes" if good else "no",
            "imbalance": f"{found['imbalance']:.1e}",
            "biases keep": f"{found['biases keep']:.3f}",
            "sum / seed": f"{found['sum / seed']:.5f}",
            "seconds": f"{found['seconds']:.1f}",
        }
        lines.append("| " + " | ".join(cells.get(c) or str(found[c]) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 if a network does not balance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="architectures (default: all convolutional ones)")
    parser.add_argument("--size", type=int, default=96, help="pixels of the square images (default 96)")
    parser.add_argument("--no-peers", action="store_true", help="leave zennit and captum out")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(torchvision.models.list_models())
    if unknown:
        print(f"torchvision has no {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    rows = []
    for name in (bar := tqdm(options.names or names(), unit="net")):
        bar.set_postfix_str(name)
        rows.append(row(name, options.size, peers=not options.no_peers))
        gc.collect()
    table = pd.DataFrame(rows)
    text = as_markdown(table, options.size)
    if options.names:
        print(text)
    else:
        TABLE.write_text(text, encoding="utf-8")
        print(f"wrote {TABLE.relative_to(TABLE.parents[1])}")
    for _, found in table[~(table["imbalance"] <= BALANCED)].iterrows():
        print(f"{found['architecture']}: {found.get('error') or found['imbalance']}", file=sys.stderr)
    return int(not (table["imbalance"] <= BALANCED).all())


if __name__ == "__main__":
    sys.exit(main())
