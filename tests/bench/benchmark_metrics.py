"""What do insertion and deletion cost beyond their forward passes? `python -m lrp.benchmark_metrics` tells.

Every round times, in one process and on the same images and threads, the two curves of `insertion.measure`, bare
forward passes of the very batches that it shows the model, and Quantus' PixelFlipping with as many evaluations, from
the top of the map for deletion and from its bottom, read backwards, for insertion; and our curves once more for maps
of eight levels, whose points share masks. Costs are ratios within a round.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from lrp.data import models
from lrp.data.datasets import SCENE, scenes
from lrp.data.models import calibrated
from lrp.evaluate import insertion
from lrp.evaluate.cost import seconds

from .benchmark import images, memory_policy
from .benchmark_report import rounded
from .coverage_report import version

FIGURES = Path(__file__).resolve().parents[2] / "figures"
HEAD = ("network", "images", "pixels", "points per curve", "evaluations", "overhead, %", "eight levels", "Quantus")
COSTS = ("overhead", "sharing", "quantus")
PLACES = {  # images, side, features per step of Quantus
    "scene_resnet": (16, 64, 128),
    "scene_resnet, pixel by pixel": (1, 48, 3),
    "mobilenet_v2": (4, 224, 1568),
}


def setting(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, its images, maps without ties, and black: (N, 3, H, W), (N, H, W), (1, 3, 1, 1)."""
    n, side, _ = PLACES[name]
    if name.startswith("scene_resnet"):
        model, x = models.load("scene_resnet"), SCENE(scenes(n, size=side, split="test").images)
        black, _ = SCENE.bounds()
    else:
        x = images(n, side, "cpu")
        model, black = calibrated(name, x), torch.full((1, 3, 1, 1), float(x.min()))
    maps = torch.randperm(n * side**2, generator=torch.Generator().manual_seed(1)).view(n, side, side)
    return model, x, maps.float(), black


def pace(features: int, pixels: int, channels: int = 3) -> tuple[int, int]:
    """Our step in pixels and the evaluations per curve, for so many features (pixel and channel) per step of Quantus.

    Quantus flips single channels of a pixel, `features` at a time, which must divide the pixels. Raises ValueError
    where no whole number of pixels gives as many evaluations.
    """
    evaluations = channels * pixels // features
    step = -(-pixels // evaluations)
    if pixels % features or -(-pixels // step) != evaluations:
        raise ValueError(f"{features} features per step: no step in pixels gives {evaluations} points of {pixels}")
    return step, evaluations


def recorded(model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
    """The batches that the model is shown during a call."""
    batches: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    try:
        call()
    finally:
        hook.remove()
    return batches


@torch.no_grad()
def forward(model: nn.Module, batches: list[Tensor]) -> None:
    """Nothing but the forward passes."""
    for batch in batches:
        model(batch)


def quantus(model: nn.Module, x: Tensor, maps: Tensor, features: int) -> Callable[[], list]:
    """PixelFlipping from the top of the maps and from their bottom, `features` at a time; ImportError without Quantus.

    Its black is the least value of an image. Areas are not asked for: NumPy 2.4 has no `trapz` any more.
    """
    from quantus import PixelFlipping

    with torch.no_grad():
        arrays = x.numpy(), model(x).argmax(1).numpy()
    metric = PixelFlipping(features_in_step=features, normalise=False, disable_warnings=True)
    upright, reversed_ = maps[:, None].numpy(), -maps[:, None].numpy()
    options = {"channel_first": True, "device": "cpu"}
    return lambda: [metric(model, *arrays, a_batch=a, **options) for a in (upright, reversed_)]


def measure(name: str, rounds: int) -> dict:
    """Overhead in per cent of the forward passes, what shared masks save, and Quantus' time in ours; one per round."""
    model, x, maps, black = setting(name)
    n, side, features = PLACES[name]
    step, points = pace(features, side**2)
    few = insertion.heat_quantization(maps)
    ours, tied = (
        lambda m=m: insertion.measure(model, x, m, step=step, black=black, progress=False) for m in (maps, few)
    )
    batches = recorded(model, ours)
    result = {"images": n, "side": side, "step": step, "points": points, "features": features}
    result |= {"evaluations": sum(map(len, batches)), "evaluations of eight levels": tied().evaluations}
    calls = {"forward": lambda: forward(model, batches), "ours": ours, "tied": tied}
    try:
        calls["quantus"] = quantus(model, x, maps, features)
        result["evaluations of Quantus"] = sum(map(len, recorded(model, calls["quantus"])))
    except ImportError as error:
        print(f"Quantus is left out: {error}", file=sys.stderr)
    calls["forward"]()  # warm, as the others are by now
    times = [{key: seconds(call) for key, call in calls.items()} for _ in tqdm(range(rounds), desc=name)]
    result["overhead"] = [100 * (t["ours"] / t["forward"] - 1) for t in times]
    result["sharing"] = [t["ours"] / t["tied"] for t in times]
    result["quantus"] = [t["quantus"] / t["ours"] for t in times if "quantus" in t]
    return result


def as_markdown(results: dict[str, dict], conditions: str) -> str:
    """The table with its conditions, ready to be read."""
    lines = [
        "# Insertion and deletion: what they cost",
        "",
        "Overhead: time of both curves beyond bare forward passes of the same batches. Eight levels: how many times "
        "faster the curves of `heat_quantization`'s maps are, whose points share masks. Quantus: time of its "
        "PixelFlipping in units of ours, for as many curves, evaluations and images on the same network; it flips "
        "single channels of pixels. Median over paired rounds [least, largest]. "
        f"{conditions}; written by `make bench`.",
        "",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
    ]
    for name, r in results.items():
        cells = [
            f"{statistics.median(v):.1f} [{min(v):.1f}, {max(v):.1f}]" if v else "" for v in (r[key] for key in COSTS)
        ]
        size = f"{r['side']} x {r['side']}"
        lines.append(f"| {name} | {r['images']} | {size} | {r['points']} | {r['evaluations']} | {' | '.join(cells)} |")
    if not any(r["quantus"] for r in results.values()):
        lines += ["", "Quantus is not installed here: `pip install quantus` brings its column."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line; writes `figures/benchmark_metrics.md` and its numbers (json)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = {name: measure(name, options.rounds) for name in PLACES}
    versions = f"torch {version(torch)}, torchvision {version(torchvision)}"
    if any(r["quantus"] for r in results.values()):
        versions += f", Quantus {version(sys.modules['quantus'])}"
    conditions = (
        f"{options.rounds} rounds, float32, {options.threads} threads, CPU, memory {memory_policy()}, "
        "protocol `authors`, maps without ties, "
        f"scene_resnet as trained, mobilenet_v2 with random weights and calibrated BatchNorm, {versions}"
    )
    text = as_markdown(results, conditions)
    if options.no_write:
        print(text)
        return 0
    numbers = rounded({"conditions": conditions, "results": results})
    (FIGURES / "benchmark_metrics.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (FIGURES / "benchmark_metrics.md").write_text(text, encoding="utf-8")
    print("wrote figures/benchmark_metrics.md and its numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
