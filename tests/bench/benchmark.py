"""What does an explanation cost, in units of one forward pass and input gradient? `python -m lrp.benchmark` tells.

Every round times the gradient and then each method, in one process, on the same network, images and threads; a cost is
the ratio within its round, and the table gives the median over rounds with the least and the largest. Ratios travel
between machines, seconds don't. Memory is the most that a call holds beyond what stood before it, in the same unit;
growth is how cost rises with batch size, image size and number of targets; the profile says which operations take the
time. `--only` measures one of these anew and keeps what `figures/benchmark.json` has of the others.
"""

import argparse
import copy
import json
import os
import sys
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision
from torch import nn
from tqdm import tqdm

from lrp import composites
from lrp.data.models import calibrated
from lrp.engine import LRP
from lrp.evaluate.cost import seconds
from lrp.teach.figures import STYLE

from .benchmark_report import as_markdown, growth_picture, picture, rounded
from .coverage_report import version

FIGURES = Path(__file__).resolve().parents[2] / "figures"
NETWORKS = ("vgg16", "resnet50", "mobilenet_v2")
PARTS = ("cost", "memory", "growth", "profile")
OPERATIONS = {"convolutions": "conv", "dense layers": "mm", "pooling": "pool", "BatchNorm": "batch_norm"}  # by name
BOX = 5.0  # the random images are clamped to +-BOX, the bounds of EpsilonGammaBox
OURS = {
    "Epsilon": composites.Epsilon(),
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-BOX, BOX),
}


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
    """EpsilonPlus in zennit, with its canonizers."""
    from zennit import attribution, canonizers
    from zennit import composites as theirs
    from zennit import torchvision as own

    kind = {"ResNet": own.ResNetCanonizer, "VGG": own.VGGCanonizer}
    canonizer = kind.get(type(model).__name__, canonizers.SequentialMergeBatchNorm)()
    composite = theirs.EpsilonPlus(canonizers=[canonizer])

    def explain():
        with attribution.Gradient(model=copied, composite=composite) as attributor:
            return attributor(x.clone().requires_grad_(), one_hot)

    copied = copy.deepcopy(model)
    one_hot = nn.functional.one_hot(model(x).argmax(1), 1000).to(x)
    return {"zennit EpsilonPlus": explain}


def captum(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """captum's LRP, where it is right: on networks without skips; epsilon everywhere and its form of EpsilonPlus."""
    from captum.attr import LRP as Captum
    from captum.attr._utils import lrp_rules as theirs

    if not isinstance(model, torchvision.models.VGG):
        return {}
    copied, target = copy.deepcopy(model), model(x).argmax(1)

    def explain(convolutions: type):
        for module in copied.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.rule = convolutions() if isinstance(module, nn.Conv2d) else theirs.EpsilonRule()
        return Captum(copied).attribute(x.clone().requires_grad_(), target=target)

    return {
        "captum Epsilon": lambda: explain(theirs.EpsilonRule),
        "captum EpsilonPlus": lambda: explain(theirs.Alpha1_Beta0_Rule),
    }


def images(batch: int, size: int, device: str) -> torch.Tensor:
    """Random images (N, 3, size, size) within the box of EpsilonGammaBox."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, size, size, generator=generator).clamp(-BOX, BOX).to(device)


def measure(name: str, rounds: int, batch: int, size: int, device: str = "cpu") -> dict[str, list[float]]:
    """Costs per method, one per round, in units of the gradient of the same round."""
    x = images(batch, size, device)
    model = calibrated(name, x)
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


def memory(name: str, batch: int, size: int, device: str = "cpu") -> dict[str, float]:
    """Peak memory of one explanation per preset, in units of the gradient's."""
    x = images(batch, size, device)
    model = calibrated(name, x)
    unit = gradient(model, x)
    calls = {method: call for method, call in ours(model, x).items() if method != "ten targets, ten calls"}
    for call in (unit, *calls.values()):
        call()
    one = peak(unit, device)
    return {method: peak(call, device) / one for method, call in calls.items()}


def peak(call: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes of tensors that a call holds at any time, beyond what stood before it."""
    if device != "cpu":
        torch.cuda.synchronize(), torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def profile(name: str, batch: int, size: int, calls: int = 3) -> dict[str, dict[str, float]]:
    """Time of the gradient and of two presets by kind of operation, in units of all the gradient's; on the CPU."""
    x = images(batch, size, "cpu")
    model = calibrated(name, x)
    methods = ours(model, x)
    methods = {"gradient": gradient(model, x)} | {m: methods[m] for m in ("EpsilonPlus", "EpsilonAlpha2Beta1")}
    found = {}
    for method, call in methods.items():
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            for _ in range(calls):
                call()
        found[method] = dict.fromkeys([*OPERATIONS, "elementwise and the rest"], 0.0)
        for event in recorded.key_averages():
            kind = next((k for k, part in OPERATIONS.items() if part in event.key), "elementwise and the rest")
            found[method][kind] += event.self_cpu_time_total
    whole = sum(found["gradient"].values())
    return {method: {kind: time / whole for kind, time in kinds.items()} for method, kinds in found.items()}


def growth(name: str = "resnet50", rounds: int = 2, device: str = "cpu") -> list[dict]:
    """Costs of the gradient and of EpsilonPlus against one quantity at a time, in units of one image's gradient.

    The quantities start from one image of 224 pixels and one target; several targets cost the gradient one forward
    and as many backward passes.
    """
    model = calibrated(name, images(4, 224, device))
    explainer = LRP(model, composites.EpsilonPlus())
    settings = [("batch size", n, (n, 224, 1)) for n in (1, 2, 4, 8, 16, 32)]
    settings += [("image size", n, (1, n, 1)) for n in (112, 160, 224, 320, 448)]
    settings += [("targets", n, (1, 224, n)) for n in (1, 3, 10, 30, 100)]
    rows, one = [], gradient(model, images(1, 224, device))
    for quantity, at, (batch, size, targets) in tqdm(settings, desc=f"{name}, growth"):
        x, classes = images(batch, size, device), list(range(targets))
        calls = {
            "gradient": gradient(model, x) if targets == 1 else lambda x=x, c=classes: gradients(model, x, c),
            "EpsilonPlus": lambda x=x, c=classes: explainer.attribute(x, c),
        }
        for call in calls.values():
            call()
        for _ in range(rounds):
            unit = seconds(one)
            rows += [
                {"quantity": quantity, "at": at, "method": method, "cost": seconds(call) / unit}
                for method, call in calls.items()
            ]
    return rows


def gradients(model: nn.Module, x: torch.Tensor, classes: list[int]) -> list[torch.Tensor]:
    """Input gradients of several logits after one forward pass."""
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    return [torch.autograd.grad(output[:, k].sum(), leaf, retain_graph=True)[0] for k in classes]


def memory_policy() -> str:
    """What becomes of freed memory of large tensors: `make` keeps it with the process, which is faster on Linux."""
    return "kept by the process" if "MALLOC_TRIM_THRESHOLD_" in os.environ else "as the system does"


def main(arguments: list[str] | None = None) -> int:
    """Command line; writes `figures/benchmark.md`, its pictures and its numbers (json)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[], help=f"networks, to print only (default: {' '.join(NETWORKS)})")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure only this, keep the rest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names, kept, only = options.names or NETWORKS, FIGURES / "benchmark.json", set(options.only)
    if options.names:
        only -= {"growth"}
    setting, numbers = (options.batch, options.size), {}
    conditions = (
        f"{options.rounds} rounds, batch {options.batch}, {options.size} pixels, float32, {options.threads} threads, "
        f"{options.device}, memory {memory_policy()}, random weights with calibrated BatchNorm, torch {version(torch)}"
    )
    if only < set(PARTS) and not options.names:
        if not kept.exists() or (numbers := json.loads(kept.read_text()))["conditions"] != conditions:
            print("the rest was measured under other conditions, or not at all: run without --only", file=sys.stderr)
            return 2
    numbers["conditions"] = conditions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "cost" in only:
            numbers["cost"] = {name: measure(name, options.rounds, *setting, options.device) for name in names}
            model = torchvision.models.resnet50(weights=None).eval()
            numbers["capture"] = min(seconds(lambda: LRP(model, composites.EpsilonPlus())) for _ in range(3))
        if "memory" in only:
            numbers["memory"] = {name: memory(name, *setting, options.device) for name in names}
        if "growth" in only:
            numbers["growth"] = growth(device=options.device)
        if "profile" in only and options.device == "cpu":
            numbers["profile"] = {name: profile(name, *setting) for name in names}
    numbers = rounded(numbers)
    text = as_markdown(numbers)
    if options.names:
        print(text)
        return 0
    plt.style.use(STYLE)
    plain = {"metadata": {"Software": None}}
    picture(numbers["cost"]).savefig(FIGURES / "benchmark.png", **plain)
    growth_picture(numbers["growth"]).savefig(FIGURES / "benchmark_growth.png", **plain)
    kept.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (FIGURES / "benchmark.md").write_text(text, encoding="utf-8")
    print("wrote figures/benchmark.md, its two pictures and its numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
