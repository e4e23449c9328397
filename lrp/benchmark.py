"""What does an explanation cost, in units of one forward pass and input gradient? `python -m lrp.benchmark` tells.

Every round times the gradient and then each method, in one process, on the same network, images and threads; a cost is
the ratio within its round, and the table gives the median over rounds with the least and the largest. Ratios travel
between machines, seconds don't.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchvision
from torch import nn
from tqdm import tqdm

from . import composites
from .coverage import version
from .engine import LRP

FIGURES = Path(__file__).resolve().parents[1] / "figures"
NETWORKS = ("vgg16", "resnet50", "mobilenet_v2")
BOX = 5.0  # the random images are clamped to +-BOX, the bounds of EpsilonGammaBox
OURS = {
    "Epsilon": composites.Epsilon(),
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-BOX, BOX),
}


def network(name: str, x: torch.Tensor) -> nn.Module:
    """A classifier with random weights and BatchNorm calibrated on x: its activations are sane (no denormals)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
        with torch.no_grad():
            model.train()(x)
    return model.eval()


def gradient(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """One forward pass and the gradient of the predicted logits with respect to the input."""

    def run():
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        return torch.autograd.grad(output.max(1).values.sum(), leaf)

    return run


def ours(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """This package's presets, captured once as users do, and ten targets in one call and in ten."""
    explainers = {name: LRP(model, composite) for name, composite in OURS.items()}
    calls = {name: lambda e=e: e.attribute(x) for name, e in explainers.items()}
    plus = explainers["EpsilonPlus"]
    calls["ten targets, one call"] = lambda: plus.attribute(x, list(range(10)))
    calls["ten targets, ten calls"] = lambda: [plus.attribute(x, k) for k in range(10)]
    return calls


def zennit(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The same presets in zennit, with its canonizers and biases excluded as its fastest setting has it."""
    from zennit import attribution, canonizers
    from zennit import composites as theirs
    from zennit import torchvision as own

    kind = {"ResNet": own.ResNetCanonizer, "VGG": own.VGGCanonizer}
    canonizer = kind.get(type(model).__name__, canonizers.SequentialMergeBatchNorm)()
    presets = {
        "EpsilonPlus": theirs.EpsilonPlus(canonizers=[canonizer]),
        "EpsilonAlpha2Beta1": theirs.EpsilonAlpha2Beta1(canonizers=[canonizer]),
        "EpsilonGammaBox": theirs.EpsilonGammaBox(-BOX, BOX, canonizers=[canonizer]),
    }

    def explain(composite):
        with attribution.Gradient(model=copied, composite=composite) as attributor:
            return attributor(x.clone().requires_grad_(), one_hot)

    copied = copy.deepcopy(model)
    one_hot = nn.functional.one_hot(model(x).argmax(1), 1000).to(x)
    return {f"zennit {name}": lambda c=c: explain(c) for name, c in presets.items()}


def captum(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """captum's LRP with its default rules, where it is right: on networks without skips."""
    from captum.attr import LRP as Captum

    if not isinstance(model, torchvision.models.VGG):
        return {}
    copied, target = copy.deepcopy(model), model(x).argmax(1)
    return {"captum LRP": lambda: Captum(copied).attribute(x.clone().requires_grad_(), target=target)}


def measure(name: str, rounds: int, batch: int, size: int) -> dict[str, list[float]]:
    """Costs per method, one per round, in units of the gradient of the same round."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator).clamp(-BOX, BOX)
    model = network(name, x)
    methods = ours(model, x)
    for peer in (zennit, captum):
        try:
            methods |= peer(model, x)
        except ImportError as error:
            print(f"{peer.__name__} is left out: {error}", file=sys.stderr)
    unit = gradient(model, x)
    for call in (unit, *methods.values()):
        call()  # warm: first calls compare graph and model, and make modified weights
    costs: dict[str, list[float]] = {method: [] for method in methods}
    for _ in tqdm(range(rounds), desc=name):
        one = seconds(unit)
        for method, call in methods.items():
            costs[method].append(seconds(call) / one)
    return costs


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def picture(results: dict[str, dict[str, list[float]]]) -> plt.Figure:
    """Costs as dots with their range, one panel per network."""
    fig, axes = plt.subplots(1, len(results), figsize=(6.3, 2.6), sharey=True)
    methods = [m for m in next(iter(results.values())) if not m.startswith("ten")]
    for ax, (name, costs) in zip(np.atleast_1d(axes), results.items(), strict=True):
        y = np.arange(len(methods))[::-1]
        for at, method in zip(y, methods, strict=True):
            if method in costs:
                low, middle, high = min(costs[method]), statistics.median(costs[method]), max(costs[method])
                colour = "0.55" if method.startswith(("zennit", "captum")) else "#0072B2"
                ax.plot([low, high], [at, at], color=colour, lw=1)
                ax.plot(middle, at, "o", color=colour, ms=4)
        ax.axvline(1, color="0.7", ls=":", lw=1)
        ax.set(title=name, xlabel="gradients", xscale="log", yticks=y, yticklabels=methods)
        ax.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        ax.minorticks_off()
    return fig


def as_markdown(results: dict[str, dict[str, list[float]]], capture: float, conditions: str) -> str:
    """The table with its conditions, ready to be read."""
    lines = [
        "# Benchmark",
        "",
        "Cost of one explanation in units of one forward pass and input gradient of the same network; median over "
        f"paired rounds (least to largest). {conditions}; written by `make bench`.",
        "",
        "![Costs of this package and of its peers, per network](benchmark.png)",
        "",
        "| method | " + " | ".join(results) + " |",
        "|---" * (1 + len(results)) + "|",
    ]
    for method in dict.fromkeys(m for costs in results.values() for m in costs):
        cells = []
        for costs in results.values():
            c = costs.get(method)
            cells.append(f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" if c else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", f"Capturing ResNet-50 takes {capture:.2f} s, once per explainer."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line; writes `figures/benchmark.md` and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[], help=f"networks (default: {' '.join(NETWORKS)})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = options.names or NETWORKS
        results = {name: measure(name, options.rounds, options.batch, options.size) for name in names}
    model = torchvision.models.resnet50(weights=None).eval()
    capture = min(seconds(lambda: LRP(model, composites.EpsilonPlus())) for _ in range(3))
    conditions = (
        f"{options.rounds} rounds, batch {options.batch}, {options.size} pixels, float32, {options.threads} threads, "
        f"random weights with calibrated BatchNorm, torch {version(torch)}"
    )
    text = as_markdown(results, capture, conditions)
    if options.names:
        print(text)
        return 0
    plt.style.use(Path(__file__).with_name("lrp.mplstyle"))
    picture(results).savefig(FIGURES / "benchmark.png", metadata={"Software": None})
    (FIGURES / "benchmark.md").write_text(text, encoding="utf-8")
    print("wrote figures/benchmark.md and figures/benchmark.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
