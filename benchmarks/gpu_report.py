"""One command that measures kernels, training step and input pipeline on a GPU, and writes a table.

    python benchmarks/gpu_report.py --output gpu_report [--minutes 9] [--cifar10 TRAIN TEST] [--photos FOLDER]

Needs PyTorch and the wheels that `--wheels` collects; VISSL only for the pieces that compare with it. Works in pieces:
results are kept as JSON in the output folder; when the minutes are over, the command stops before the next piece, or in
the middle of the CIFAR-10 recipe, and resumes there when called again. Exit code 0: the report is complete; 3: call it
again; 1: a piece failed.

    python benchmarks/gpu_report.py --wheels FOLDER [--present NAME ...]

prepares for a machine without access to a package registry: it collects the wheels that such a machine lacks and prints
their total size.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # a bare machine has only a checkout, no installation

NO_VISSL = "VISSL is not installed here"
CORE = ("numpy", "pillow", "torchvision", "safetensors", "simplejpeg", "tqdm")
FOR_SPEED = ("opencv-python-headless",)  # augmentation in the loader's workers
FOR_VISSL = (
    "vissl", "classy-vision", "fvcore", "iopath", "hydra-core", "omegaconf", "antlr4-python3-runtime", "parameterized",
    "submitit", "cloudpickle", "tabulate", "termcolor", "yacs", "portalocker", "pyyaml", "scipy", "scikit-learn",
    "joblib", "threadpoolctl", "tensorboard", "matplotlib", "scikit-image",
)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One measurement.

    Attributes:
        measure: returns the content of the JSON, or a sentence that says why there is none.
        minutes: approximate time on a GPU; with less left, the piece waits for the next call.
        rows: its rows in the table: (quantity, value, goal).
    """

    measure: Callable[[argparse.Namespace], Any]
    minutes: float
    rows: Callable[[Any], list[tuple[str, str, str]]]


def _size(options: argparse.Namespace):
    from gpu_pieces import TINY, Size

    return TINY if options.tiny else Size()


def _kernels(options: argparse.Namespace) -> dict:
    from gpu_pieces import errors_of_kernels

    return errors_of_kernels(_size(options))


def _kernel_rows(found: dict) -> list[tuple[str, str, str]]:
    # The same bounds as in the tests; with bfloat16 rows the definition reads the same rounded rows.
    return [
        (f"error of {name}: loss, gradient", f"{error['loss']:.1e}, {error['gradient']:.1e}", "below 1e-5, 1e-3")
        for name, error in found.items()
    ]


def _bandwidth(options: argparse.Namespace) -> dict:
    from gpu_pieces import share_of_a_copy

    return share_of_a_copy(_size(options))


def _bandwidth_rows(found: dict) -> list[tuple[str, str, str]]:
    rows = [("plain copy, read and written", f"{found['bytes_per_second']['copy'] / 1e9:,.0f} GB/s", "")]
    rows += [
        (f"per_image, {name}: rows read, of the copy's rate", f"{share:.0%}, {found['launches'][name]}", "above 60%")
        for name, share in found["of_a_copy"].items()
        if name != "copy"
    ]
    return rows


def _steps(options: argparse.Namespace) -> dict:
    from gpu_pieces import steps

    return steps(_size(options))


def _step_rows(found: dict) -> list[tuple[str, str, str]]:
    rows = []
    for name, figures in found.items():
        memory = figures["peak_extra_bytes"]
        goal = "above 1,450, aim 2,500 (H200)" if name == "bfloat16, compiled" else ""
        rows.append((f"step, {name}: images/s", f"{figures['images_per_second']:,.0f}", goal))
        rows.append((f"step, {name}: loss's share (per_image)", f"{figures['loss_share']:.1%}", "below 3%"))
        if memory is not None:
            rows.append((f"step, {name}: peak memory beyond weights", f"{memory / 1e9:.1f} GB", ""))
    return rows


def _memory(options: argparse.Namespace) -> dict:
    from gpu_pieces import memory_by_batch

    return memory_by_batch(_size(options))


def _memory_rows(found: dict) -> list[tuple[str, str, str]]:
    return [(f"memory, {name}", f"{value / 1e9:.1f} GB", "") for name, value in found.items() if value is not None]


def _files(options: argparse.Namespace) -> dict:
    from gpu_pieces import from_files, make_jpegs

    size, photos = _size(options), options.photos
    if photos is None:
        photos = options.output / "photos"
        make_jpegs(photos, size.photos)
    return {"photos": str(options.photos or "made"), **from_files(size, photos)}


def _file_rows(found: dict) -> list[tuple[str, str, str]]:
    rows = []
    for name, figures in found.items():
        if name != "photos":
            rows.append((f"from JPEGs, bfloat16, {name}: images/s", f"{figures['images_per_second']:,.0f}", ""))
            rows.append((f"from JPEGs, {name}: share of waiting", f"{figures['input_wait_share']:.0%}", ""))
    return rows


def _beside_vissl(script: str, *arguments: str) -> Callable[[argparse.Namespace], Any]:
    def measure(options: argparse.Namespace) -> Any:
        if importlib.util.find_spec("vissl") is None:
            return NO_VISSL
        path = options.output / f"{script}_whole.json"
        tiny = {
            "objective": ["--rows=400", "--negatives=64", "--batch=4", "--repeats=2", "--sizes"],
            "training_step": ["--batch=2", "--rows=40000", "--repeats=1"],
        }
        given = tiny[script] if options.tiny else list(arguments)
        subprocess.run([sys.executable, HERE / f"{script}.py", "--output", path, *given], check=True)
        seconds = json.loads(path.read_text())["step_seconds" if script == "objective" else "seconds"]
        return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}

    return measure


def _faster_rows(what: str, goal: str) -> Callable[[dict], list[tuple[str, str, str]]]:
    def rows(seconds: dict) -> list[tuple[str, str, str]]:
        vissl = next(name for name in seconds if name.startswith("VISSL"))
        return [
            (
                f"{what}, {name}: faster than VISSL",
                f"{seconds[vissl] / value:.1f}x ({1000 * value:.0f} ms)",
                goal if "per_image" in name else "",
            )
            for name, value in seconds.items()
            if name != vissl
        ]

    return rows


PIECES = {
    "kernels": Piece(_kernels, 2, _kernel_rows),
    "bandwidth": Piece(_bandwidth, 1, _bandwidth_rows),
    "steps": Piece(_steps, 3, _step_rows),
    "memory": Piece(_memory, 1, _memory_rows),
    "files": Piece(_files, 3, _file_rows),
    "objective": Piece(_beside_vissl("objective", "--batch=256", "--sizes"), 3, _faster_rows("loss", "at least 10x")),
    "training_step": Piece(_beside_vissl("training_step"), 4, _faster_rows("VISSL's trainer", "")),
}


def cifar10(options: argparse.Namespace, minutes: float) -> tuple[bool, dict]:
    """Train on with the recipe; returns whether it has ended, and its progress."""
    import torch
    from cifar10 import Recipe, Run, read_labelled
    from measuring import where_a_run_computes

    where = where_a_run_computes()
    tiny = Recipe(epochs=2, batch=8, width=0.125, bfloat16=False, knn_every=1)
    recipe = tiny if options.tiny else Recipe(compiled=torch.cuda.is_available(), batch=256)
    train, test = (read_labelled(each, where) for each in options.cifar10)
    run = Run(recipe, train, test, options.output / "cifar10", where)
    ended = run.go_on(minutes)
    return ended, {"recipe": asdict(recipe), **run.result()}


def _cifar10_rows(found: dict) -> list[tuple[str, str, str]]:
    measured = [line for line in found["history"] if "knn" in line]
    rate = found["images_per_second"]
    return [
        ("CIFAR-10: epochs done", f"{found['epochs_done']} of {found['recipe']['epochs']}", ""),
        ("CIFAR-10: images/s", "-" if rate is None else f"{rate:,.0f}", "about 10,000"),
        ("CIFAR-10: kNN untrained, last", f"{measured[0]['knn']:.1f}, {measured[-1]['knn']:.1f}", ""),
    ]


def write_report(options: argparse.Namespace, left: list[str]) -> Path:
    """Write report.json and report.md of everything done so far."""
    from measuring import machine

    paths = {name: _json(options, name) for name in [*PIECES, "cifar10"]}
    done = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    here = machine()
    lines = [f"{here['gpu'] or 'No GPU: ' + here['processor']}, torch {here['torch']}, {here['date']}", ""]
    lines += ["| quantity | measured | goal |", "| --- | --- | --- |"]
    for name, found in done.items():
        if isinstance(found, str):
            lines.append(f"| {name} | not measured: {found} | |")
            continue
        rows = _cifar10_rows if name == "cifar10" else PIECES[name].rows
        lines += [f"| {quantity} | {value} | {goal} |" for quantity, value, goal in rows(found)]
    lines += [f"| {name} | still to be measured | |" for name in left]
    (options.output / "report.json").write_text(json.dumps({"machine": here, **done}, indent=2) + "\n")
    path = options.output / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _json(options: argparse.Namespace, name: str) -> Path:
    return options.output / f"{name}.json"


def free_memory() -> None:
    """Free the device's memory for the processes that measure next."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def report(options: argparse.Namespace) -> int:
    """Measure the remaining pieces as far as time allows; returns the exit code."""
    options.output.mkdir(parents=True, exist_ok=True)
    started, left, failed = time.time(), [], []

    def minutes_left() -> float:
        return options.minutes - (time.time() - started) / 60

    for name, piece in PIECES.items():
        if _json(options, name).exists():
            continue
        if minutes_left() <= (0 if options.tiny else piece.minutes):
            left.append(name)
            continue
        print(f"== {name} ({minutes_left():.1f} minutes left) ==", flush=True)
        try:
            _json(options, name).write_text(json.dumps(piece.measure(options), indent=2))
        except Exception:  # the others may still work
            traceback.print_exc()
            failed.append(name)
        free_memory()
    if options.cifar10 and not left and not failed and minutes_left() > 0:
        print(f"== cifar10 ({minutes_left():.1f} minutes left) ==", flush=True)
        ended, found = cifar10(options, minutes_left())
        _json(options, "cifar10").write_text(json.dumps(found, indent=2))
        left += [] if ended else ["cifar10"]
    elif options.cifar10:
        left.append("cifar10")
    path = write_report(options, left)
    print(f"\n{path.read_text()}\nWritten: {path}")
    if failed:
        print(f"Failed; the next call tries again: {', '.join(failed)}")
        return 1
    if left:
        print(f"Not finished; the same command resumes: {', '.join(left)}")
    return 3 if left else 0


def needed_by(package: str, known: set[str]) -> set[str]:
    """A package and all its dependencies without extras, from its installed metadata."""
    name = package.lower().replace("_", "-")
    if name not in known:
        known.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            needed = []
        for line in needed:
            if "extra ==" not in line:
                needed_by("".join(c if c.isalnum() or c in "-_." else " " for c in line).split()[0], known)
    return known


def pins() -> dict[str, str]:
    """name -> name==version, from requirements.in."""
    lines = (HERE.parent / "requirements.in").read_text().splitlines()
    found = (line.split(" ;")[0].strip() for line in lines if "==" in line and not line.startswith("#"))
    return {pin.split("==")[0].lower(): pin for pin in found}


def collect_wheels(folder: Path, present: list[str]) -> int:
    """Collect the wheels that a machine with torch and `present` lacks; returns the exit code."""
    there = needed_by("torch", set()) | {name.lower().replace("_", "-") for name in present}
    known, total = pins(), 0
    folder.mkdir(parents=True, exist_ok=True)
    for group, names in {"needed": CORE, "for speed": FOR_SPEED, "for the pieces beside VISSL": FOR_VISSL}.items():
        of_group = total
        for name in (name for name in names if name not in there):
            before = set(folder.glob("*.whl"))
            command = [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                known[name],
            ]
            subprocess.run([*command, "--wheel-dir", folder], check=True)
            size = sum(path.stat().st_size for path in set(folder.glob("*.whl")) - before)
            total += size
            print(f"  {known[name]:40} {size / 1e6:6.1f} MB", flush=True)
        print(f"{group:42} {(total - of_group) / 1e6:6.1f} MB", flush=True)
    print(f"{total / 1e6:.1f} MB in {folder}, for Python {sys.version_info.major}.{sys.version_info.minor}")
    print("There: python -m pip install --no-index --no-deps --target site FOLDER/*.whl; PYTHONPATH=site")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_report"), help="a folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of one call")
    parser.add_argument("--cifar10", nargs=2, metavar=("TRAIN", "TEST"), help="folders or .npz, for the recipe")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs; default: generated ones")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the command itself on a CPU")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="collect wheels for a bare machine instead")
    parser.add_argument("--present", nargs="*", default=[], metavar="NAME", help="packages it has besides torch")
    options = parser.parse_args()
    if options.wheels:
        return collect_wheels(options.wheels, options.present)
    return report(options)


if __name__ == "__main__":
    sys.exit(main())
