"""Which networks does it explain, and is the map right? `python -m tests.bench.coverage [names]` asks them all.

torchvision's classifiers, segmentation and video networks, and members of every family of timm (`coverage_networks`).
Each is asked in a process of its own, with a limit on time, and its answer is kept in build/coverage/ under a key of
the code: a run that was stopped goes on, and nothing is asked twice. The peers get torchvision's classifiers and a
sample of timm, with the rules they have under that name and the best canonizer they ship; they are optional.
"""

import argparse
import copy
import hashlib
import json
import math
import multiprocessing
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from lrp import composites, rules
from lrp.engine import LRP
from lrp.errors import CaptureError, LRPError

from . import coverage_networks as networks
from . import coverage_report as report
from .coverage_networks import derived

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "build" / "coverage"
TIMM_SAMPLE = {  # what the peers are asked of timm
    *("resnet26d", "convnext_atto", "efficientnet_lite0", "mobilenetv2_100", "regnetx_002", "repvgg_a0"),
    *("mobilenetv3_small_050", "densenet121", "nf_resnet26", "vit_tiny_patch16_224"),
}
FAST = re.compile(r"resnet18|mobilenet_v3_small|efficientnet_b0|convnext_tiny|vit_b_32|fcn_resnet50|r3d_18")  # --fast


def examine(model: nn.Module, x: Tensor) -> dict[str, object]:
    """What LRP does on this network: does it explain it, do the books balance, is the map of LRP-0 the second one's?"""
    start = time.perf_counter()
    found = _explained(model, x)
    found["seconds"] = time.perf_counter() - start
    if found["outcome"] == "explained":
        found |= _excluded(model, x) | same_map(model.double(), x[:1].double())
    return found


def _explained(model: nn.Module, x: Tensor) -> dict[str, object]:
    """EpsilonPlus in float32: the ledger, where biases keep their share; or what it raised."""
    try:
        e = LRP(model, composites.EpsilonPlus()).explain(x)
    except LRPError as error:
        outcome = "not finite" if "not finite" in str(error) else "refused"
        return {"outcome": outcome, "reason": reason(error), "message": str(error)}
    except Exception as error:  # what is no LRPError is a fault
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"
        return {"outcome": "raised", "reason": type(error).__name__, "message": message}
    kept = (e.share("bias") + e.share("stabiliser")) * e.seed
    imbalance = float(((e.seed - e.received - kept) / e.seed).abs().max())
    outcome = "explained" if imbalance <= report.BALANCED else "not balanced"
    return {"outcome": outcome, "imbalance": imbalance, "biases keep": float(e.share("bias").mean())}


def _excluded(model: nn.Module, x: Tensor) -> dict[str, object]:
    """EpsilonPlus without biases: the input's sum over the seed, and the worst distance from 1."""
    try:
        e = LRP(model, composites.EpsilonPlus(bias="exclude")).explain(x)
    except LRPError as error:
        return {"conservation": math.inf, "excluded": reason(error)}
    ratio = e.received / e.seed
    return {"conservation": float((ratio - 1).abs().max()), "sum / seed": float(ratio.mean())}


def same_map(model: nn.Module, x: Tensor) -> dict[str, object]:
    """LRP-0 (signed sums, biases absorbed, float64) against the second derivation: the largest relative difference."""
    try:
        R = LRP(model, composites.Epsilon(1e-16, addition=rules.Epsilon(1e-16))).attribute(x)
    except LRPError as error:
        return {"derivation": f"lrp: {reason(error)}"}
    try:
        second = derived(model, x)
    except Exception as error:  # autograd cannot follow, or this derivation has a gap
        return {"derivation": f"{type(error).__name__}: {error}"[:80]}
    if second.refused or second.undefined:
        return {"derivation": f"no rule for {', '.join(second.refused)}" if second.refused else "zeros that share"}
    return {"difference": float((R - second.relevance).abs().max() / second.relevance.abs().max())}


def reason(error: LRPError) -> str:
    """Why a network is refused, in a word or two: the operation without a rule, or what the capture met."""
    text = str(error)
    called = sorted({one or other for one, other in re.findall(r"calls (\w+)|\((\w+)\) gives several", text)})
    if called:
        return "no rule for " + ", ".join(called)
    if "first axis is not the batch" in text:
        return "samples not on the first axis"
    if isinstance(error, CaptureError):
        return "cannot be traced" if "could not be traced" in text else "the graph does not reproduce it"
    return type(error).__name__


# ---------------------------------------------------------------- the peers


def zennit_sum(model: nn.Module, x: Tensor) -> float:
    """zennit's EpsilonPlus without biases, from a one-hot seed: sum of relevance per image, 1 if conserved."""
    from zennit import attribution, canonizers
    from zennit import composites as theirs
    from zennit import torchvision as own

    by_type = {torchvision.models.ResNet: own.ResNetCanonizer, torchvision.models.VGG: own.VGGCanonizer}
    canonizer = by_type.get(type(model), canonizers.SequentialMergeBatchNorm)
    composite = theirs.EpsilonPlus(zero_params="bias", canonizers=[canonizer()])
    logits = model(x)
    one_hot = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(x)
    with attribution.Gradient(model=model, composite=composite) as attributor:
        _, relevance = attributor(x.clone().requires_grad_(), one_hot)
    return float(relevance.detach().sum() / len(x))


def captum_sum(model: nn.Module, x: Tensor) -> float:
    """captum's LRP with its default rules: sum of relevance over the sum of logits, 1 if conserved."""
    from captum.attr import LRP as Captum

    logits, target = model(x).max(1)
    return float((Captum(model).attribute(x.clone().requires_grad_(), target=target).sum() / logits.sum()).detach())


def attempt(method: Callable, model: nn.Module, x: Tensor) -> str:
    """A peer's number as text, or the name of the error it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f"{method(copy.deepcopy(model), x):.4g}"
    except Exception as error:
        return type(error).__name__


# ---------------------------------------------------------------- one network after the other


def row(library: str, name: str, peers: bool = True) -> dict[str, object]:
    """One line of the table."""
    try:
        model, x = networks.network(library, name)
    except Exception as error:
        return {"outcome": "not built", "reason": type(error).__name__, "message": str(error)[:300]}
    asked = peers and (library == "torchvision" or (library == "timm" and name in TIMM_SAMPLE))
    theirs = {"zennit": attempt(zennit_sum, model, x), "captum": attempt(captum_sum, model, x)} if asked else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return examine(model, x) | theirs | {"shape": list(x.shape[1:])}


def key() -> str:
    """A mark of all that an answer depends on: the core, this bench, the libraries' releases."""
    here = Path(__file__).resolve().parent
    core = [path for room in ("", "network", "nodes") for path in sorted((ROOT / "lrp" / room).glob("*.py"))]
    files = [*core, *sorted(here.glob("coverage*")), *sorted(here.parent.glob("*.py"))]
    digest = hashlib.sha256("".join(report.versions().values()).encode())
    for path in files:
        if path.suffix in (".py", ".txt") and path.name not in ("coverage_report.py", "conftest.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def answer(library: str, name: str, store: Path, seconds: float, peers: bool = True) -> dict[str, object]:
    """The stored row of a network, or a new one from a process of its own."""
    path = store / f"{library.replace(' ', '_')}-{name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, library, name, peers), daemon=True)
    process.start()
    theirs.close()
    found = {"outcome": "took too long", "reason": f"more than {seconds:g} s"}
    try:
        if ours.poll(seconds):
            found = ours.recv()
    except EOFError:
        found = {"outcome": "raised", "reason": "the process died", "message": "out of memory, perhaps"}
    process.kill()
    process.join()
    found = {"library": library, "network": name, **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(path)
    return found


def _send(pipe, library: str, name: str, peers: bool) -> None:
    pipe.send(row(library, name, peers))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 where a network fails, its books do not balance, or its map is another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks (default: all, into figures/)")
    parser.add_argument("--library", help=f"one of {', '.join(networks.SIZES)}")
    parser.add_argument("--fast", action="store_true", help="a few networks of each library")
    parser.add_argument("--no-peers", action="store_true", help="leave zennit and captum out")
    parser.add_argument("--seconds", type=float, default=300, help="limit for one network (default 300)")
    parser.add_argument("--store", type=Path, help="folder of the answers (default: build/coverage/KEY)")
    options = parser.parse_args(arguments)
    every = [(lib, name) for lib, names in networks.libraries().items() for name in names]
    asked = [(lib, name) for lib, name in every
             if options.library in (None, lib) and (not options.names or name in options.names)
             and (not options.fast or FAST.fullmatch(name))]  # fmt: skip
    unknown = set(options.names) - {name for _, name in every}
    if unknown or not asked:
        print(f"no library here has {', '.join(sorted(unknown)) or options.library}", file=sys.stderr)
        return 2
    store, rows = options.store or STORE / key(), []
    for library, name in (bar := tqdm(asked, unit="net")):
        bar.set_postfix_str(name)
        rows.append(answer(library, name, store, options.seconds, not options.no_peers))
    if len(asked) == len(every):
        report.write(rows)
    else:
        print(report.as_markdown(rows))
    wrong = [found for found in rows if report.wrong(found)]
    for found in wrong:
        print(f"{found['library']} {found['network']}: {report.wrong(found)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
