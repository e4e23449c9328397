"""The command line: `python -m lrp explain photo.jpg` writes the photo beside its heat map.

Options and messages are here, networks and pictures in `from_files`, the explanation in `answers`. torch is imported
only when there is something to explain: help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from . import COMPOSITES, OURS, PICTURES

PROGRAM = "python -m lrp"
EPILOG = "\n".join(["composites:", *(f"  {name:25}  {what}" for name, what in COMPOSITES.items())])
EPILOG += f"""

examples:
  {PROGRAM} explain cat.jpg --model squeezenet1_1
      the predicted class, into cat.lrp.png
  {PROGRAM} explain cat.jpg --model resnet50 --target "Egyptian cat" --target 207 --contrastive -o map.png
      two classes side by side: what speaks for each, and not for the others
  {PROGRAM} explain photos/ --model vgg16 --composite epsilon-plus --npy -o maps/
      every picture of a folder; what is there already is not computed again
  {PROGRAM} explain digit.png --model mynets:lenet --weights lenet.pth --size 28 --mean 0.13 --std 0.31
      your own network, from a function `lenet()` in mynets.py; one channel, since one mean is given
"""


def _read_as(read: Callable, fits: Callable, complaint: str) -> Callable:
    """A type of argparse: what `read` makes of the text, where it `fits`; else the text and the complaint."""

    def value(text: str) -> object:
        try:
            if fits(found := read(text)):
                return found
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} {complaint}")

    return value


_contrast = _read_as(int, (1, 2).__contains__, "is neither 1 nor 2 (pictures stand before it, or --contrastive=1)")
_pixels = _read_as(int, lambda n: n > 0, "is no number of pixels")
_channels = _read_as(
    lambda text: tuple(map(float, text.split(","))),
    lambda numbers: len(numbers) in (1, 3),
    "is neither one number nor three, as in 0.485,0.456,0.406",
)
OPTIONS = {  # group -> option -> what argparse is to know of it; all but the output are fields of `answers.Question`
    "network": {
        "--model": {"required": True, "metavar": "NAME"},
        "--weights": {"metavar": "FILE"},
        "--classes": {"metavar": "FILE"},
        "--device": {"default": "cpu"},
    },
    "question": {
        "-t --target": {"action": "append", "default": [], "metavar": "CLASS"},
        "--composite": {"choices": COMPOSITES, "default": "epsilon-gamma-box", "metavar": "NAME"},
        "--contrastive": {"type": _contrast, "nargs": "?", "const": 1, "metavar": "1|2"},
        "--bias": {"choices": ("absorb", "exclude")},
    },
    "preparation": {
        "--size": {"type": _pixels, "metavar": "PIXELS"},
        "--mean": {"type": _channels, "metavar": "R,G,B"},
        "--std": {"type": _channels, "metavar": "R,G,B"},
    },
    "output": {
        "-o --output": {"type": Path, "metavar": "PATH"},
        "--npy": {"action": "store_true"},
        "--force": {"action": "store_true"},
    },
}
HELP = {
    "preparation": "The short side is resized, the centre cut out, each channel normalised: as\n"
    "torchvision does for the network's weights; for your own network to 224 pixels,\n"
    "with ImageNet's mean and deviation.",
    "--model": "a classifier of torchvision (resnet50), a small network of this package (scene_vgg, "
    "scene_resnet), or package:function in your own code, called without arguments",
    "--weights": ".pth or .safetensors with a state dict (default: found by the model's name)",
    "--classes": "names of the classes, one per line",
    "--device": "cpu (default), cuda or mps",
    "-t --target": "name or index of the class to explain; repeat it for several (default: the predicted class)",
    "--composite": "which rule where, see below (default: %(default)s)",
    "--contrastive": "what speaks for the class and not for all others (1, CLRP1) or not for its own negated weights "
    "(2, CLRP2), cut at zero; relevance starts as 1, and the last layer takes z+ where its rule is blind to signs",
    "--bias": "biases get their part of the relevance, or none (default: the composite's own)",
    "--size": "height and width of the input",
    "--mean": "mean of the channels, for images in [0, 1]; one number: grey",
    "--std": "their standard deviation",
    "-o --output": "a .png for one picture, else a folder for NAME.lrp.png (default: the current folder)",
    "--npy": "also save the map with its signs, NAME.lrp.npy: float32 (C, H, W), (T, C, H, W) for T targets",
    "--force": "compute again, and overwrite what is there",
}


def parser() -> argparse.ArgumentParser:
    """All options, with their help."""
    top = argparse.ArgumentParser(PROGRAM, description="Layer-wise Relevance Propagation.")
    top.add_argument("--version", action="version", version=f"lrp {__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="")
    command = commands.add_parser(
        "explain",
        help="draw which pixels of a picture speak for a class",
        description="Draw which pixels of a picture speak for a class (red) and which against it (blue).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="pictures, or folders with pictures")
    for title, options in OPTIONS.items():
        group = command.add_argument_group(title, HELP.get(title))
        for names, properties in options.items():
            group.add_argument(*names.split(), help=HELP[names], **properties)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: 0 if all went well, 1 if something failed, 2 for options that make no sense."""
    top = parser()
    options = top.parse_args(arguments)
    if options.command is None:
        top.print_help()
        return 0
    if len(options.mean or ()) != len(options.std or ()):
        top.error("--mean and --std go together, with as many numbers")
    try:
        images = inputs(options.images)
        targets = outputs(images, options.output)
    except ValueError as error:
        top.error(str(error))
    try:
        return explain(images, targets, options)
    except KeyboardInterrupt:
        return _complain("interrupted; what is written stays, and is not computed again", status=130)


def explain(images: list[Path], targets: list[Path], options: argparse.Namespace) -> int:
    """`python -m lrp explain`: one picture after the other; what fails is named, and the rest goes on."""
    from dataclasses import fields

    from tqdm import tqdm

    from ..errors import LRPError
    from .answers import Question, write_answer
    from .from_files import OptionError

    try:
        question = Question(**{field.name: getattr(options, field.name) for field in fields(Question)})
    except LRPError as error:
        return _complain(error, status=2 if isinstance(error, OptionError) else 1)
    print(question)
    failed, alone = 0, len(images) == 1
    bar = tqdm(list(zip(images, targets, strict=True)), unit="picture", leave=False, disable=alone or None)
    for image, target in bar:
        try:
            answer = write_answer(question, image, target, npy=options.npy, force=options.force)
        except (LRPError, OSError) as error:
            failed += 1
            bar.write(f"{PROGRAM} explain: error: {image}: {error}", file=sys.stderr)
            continue
        said = "; ".join(answer.titles) if answer else "there already"
        lines = [f"{image} -> {target}: {said}", *(f"note: {note}" for note in (answer.notes if answer else ()))]
        tables = [answer.best.to_string(), answer.ledger.to_string()] if answer and alone else []
        bar.write("\n".join([*lines, *tables]))
    if failed and not alone:
        _complain(f"{failed} of {len(images)} pictures failed, see above")
    return int(failed > 0)


def _complain(message: object, status: int = 1) -> int:
    print(f"{PROGRAM} explain: error: {message}", file=sys.stderr)
    return status


# ---------------------------------------------------------------- from which file to which


def inputs(paths: list[Path]) -> list[Path]:
    """The pictures meant: files as given, of folders the pictures in them by name; ValueError for an empty folder."""
    found = {}
    for path in paths:
        inside = sorted(p for p in path.iterdir() if _is_picture(p)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"no picture in the folder {path}: they end with {' '.join(PICTURES)}")
        for picture in inside:
            found.setdefault(picture.resolve(), picture)
    return list(found.values())


def _is_picture(path: Path) -> bool:
    """Whether a file in a folder is to be explained: it is no hidden file, and not written here."""
    return path.suffix.lower() in PICTURES and path.is_file() and path.name[0] != "." and not path.name.endswith(OURS)


def outputs(images: list[Path], output: Path | None) -> list[Path]:
    """Where the result of each picture goes; ValueError where two go to one place, or one onto a picture itself."""
    folder = output or Path()
    ending = "" if folder.is_dir() else folder.suffix.lower()
    as_file = ending == ".png"
    if as_file and len(images) > 1:
        raise ValueError(f"--output {output}: {len(images)} pictures go into a folder")
    if not as_file and (folder.is_file() or ending in (*PICTURES, ".pdf", ".svg")):
        raise ValueError(f"--output {output} is neither a .png nor a folder")
    stems = [path.stem for path in images]
    names = [path.stem if stems.count(path.stem) == 1 else path.name for path in images]
    targets = [folder] if as_file else [folder / f"{name}{OURS}" for name in names]
    if twice := {str(path) for path in targets if targets.count(path) > 1}:
        raise ValueError(f"two pictures would go to {min(twice)}: explain one folder at a time")
    if over := {path.resolve() for path in targets} & {path.resolve() for path in images}:
        raise ValueError(f"{min(over)} is itself to be explained: choose another --output")
    return targets
