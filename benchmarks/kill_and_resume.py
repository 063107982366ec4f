"""Kill a run with SIGKILL at random moments and resume it: is the result bit-identical to an uninterrupted run's?

With `--kill one`, only one process is killed, the launcher or one of its ranks: do all others end as well?
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from input_pipeline import make_photos
from measuring import machine, print_table, write_json
from safetensors.torch import load_file

from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.training.checkpoint_folder import checkpoints_in

SETTINGS = [
    "config=pretrain/pirl/jigsaw_small_images_cpu",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.LOSS.pirl_loss.negatives=per_image",
    "config.LOSS.pirl_loss.num_negatives=32",
    "config.LOSS.pirl_loss.memory_bank.fill_first=False",
    "config.OPTIMIZER.num_epochs=3",
    "config.OPTIMIZER.param_schedulers.lr.update_interval=epoch",
    "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=2",
    "config.CHECKPOINT.KEEP_LAST=3",
    "config.LOG_FREQUENCY=1",
]
# VISSL's loop counter, and its list of this process's losses in the epoch: nothing reads them.
IGNORED = {"iteration_num", "losses"}


def start(folder: Path, photos: Path, processes: int, workers: int, bank: str) -> subprocess.Popen:
    """Start a run in its own process group."""
    own = [
        f"config.LOSS.pirl_loss.memory_bank.name={bank}",
        f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
        f"config.CHECKPOINT.DIR={folder}",
        f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={16 // processes}",
        f"config.DATA.NUM_DATALOADER_WORKERS={workers}",
    ]
    log = folder.with_suffix(".log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "pirl_plugin.launch.launcher", *SETTINGS, *own],
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two checkpoints differ in any bit."""
    if isinstance(one, torch.Tensor):
        same = one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        return [] if same else [where]
    if isinstance(one, dict):
        if set(one) != set(other):
            return [f"{where}: {set(one) ^ set(other)}"]
        return [d for key in one if key not in IGNORED for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)}"]
        return [d for n, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{where}[{n}]")]
    return [] if one == other else [f"{where}: {one} and {other}"]


def final(folder: Path) -> dict[str, Any]:
    """The final checkpoint, with the contents of a sharded bank's shards instead of their names."""
    (path,) = folder.glob("model_final_checkpoint_phase*.torch")
    checkpoint = load_checkpoint(path)
    bank = checkpoint["loss"].get("memory_bank._extra_state")
    if bank:
        bank["shards"] = [load_file(folder / name) for name in bank["shards"]]
    return checkpoint


def finish(folder: Path, *arguments: Any) -> None:
    """Run to the end."""
    code = start(folder, *arguments).wait(300)
    if code:
        raise RuntimeError(f"The run in {folder} ended with {code}; see {folder.with_suffix('.log')}")


def steps_done(folder: Path) -> int:
    """Iterations that a run has logged."""
    path = folder / "progress.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def living(group: int) -> list[int]:
    """Living processes of a process group, without zombies."""
    found = subprocess.run(["pgrep", "-g", str(group), "--runstates", "R,S,D,T"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def kill_one(process: subprocess.Popen, rng: random.Random) -> int:
    """SIGKILL the launcher or one of its ranks; returns how many of the run's processes are left ten seconds later."""
    command = ["pgrep", "-P", str(process.pid), "-f", "multiprocessing.spawn"]
    ranks = subprocess.run(command, capture_output=True, text=True).stdout.split()
    os.kill(rng.choice([process.pid, *map(int, ranks)]), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while living(process.pid) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.1)
    left = living(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(left)


def kill_at(
    folder: Path,
    process: subprocess.Popen,
    iteration: int,
    delay: float,
    during_a_write: bool,
    rng: random.Random | None,
) -> tuple[bool, int]:
    """SIGKILL a run `delay` seconds after an iteration.

    Args:
        rng: draws which one of its processes is killed; None kills all processes of the run.

    Returns:
        whether it was still running, and how many processes were left.
    """
    deadline = time.monotonic() + 300
    while steps_done(folder) < iteration and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    while during_a_write and not list(folder.glob("*.unfinished")) and process.poll() is None:
        time.sleep(0.0002)
    if process.poll() is not None:
        return False, 0
    if rng is not None:
        return True, kill_one(process, rng)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="in all, over 1 or 2 processes with 0 or 2 workers")
    parser.add_argument("--bank", default="memory_bank", help="or sharded_memory_bank, with two processes only")
    parser.add_argument("--kill", choices=("all", "one"), default="all", help="which processes of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/kill_and_resume_cpu.json"))
    options = parser.parse_args()
    sharded = options.bank == "sharded_memory_bank"
    rng, kinds = random.Random(options.seed), [(2, 0), (2, 2)] if sharded else [(1, 0), (2, 2), (1, 2), (2, 0)]
    print(machine())
    results, torn = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary, "photos")
        make_photos(photos / "all", 160, 48, 40)
        references: dict[tuple[int, int], dict[str, Any]] = {}
        for number in range(options.kills):
            kind = kinds[number % len(kinds)]
            if kind not in references:
                folder = Path(temporary, f"reference_{kind[0]}_{kind[1]}")
                finish(folder, photos, *kind, options.bank)
                references[kind] = final(folder)
            folder = Path(temporary, f"killed_{number}")
            iteration, delay = rng.randrange(1, references[kind]["iteration"] - 1), rng.uniform(0, 0.1)
            process, during = start(folder, photos, *kind, options.bank), rng.random() < 0.3
            one = rng if options.kill == "one" else None
            running, orphans = kill_at(folder, process, iteration, delay, during, one)
            torn += bool(list(folder.glob("*.unfinished")))
            killed_at, found = steps_done(folder), checkpoints_in(folder)
            resumed_from = found[-1][0] if found else 0
            finish(folder, photos, *kind, options.bank)
            wrong = differences(references[kind], final(folder))
            result = {
                "processes": kind[0], "workers": kind[1], "killed_at_iteration": killed_at, "was_running": running,
                "resumed_from_iteration": resumed_from, "differences": wrong,
                "orphans": orphans,
            }  # fmt: skip
            results.append(result)
            print(f"kill {number + 1} of {options.kills}: {result}", flush=True)
    good = sum(not result["differences"] and not result["orphans"] and result["was_running"] for result in results)
    rows = [["processes", "workers", "killed at > resumed from iteration", "bit-equal at the end"]]
    for kind in kinds:
        of_kind = [result for result in results if (result["processes"], result["workers"]) == kind]
        froms = ", ".join(f"{one['killed_at_iteration']} > {one['resumed_from_iteration']}" for one in of_kind)
        same = sum(not result["differences"] for result in of_kind)
        rows.append([*map(str, kind), froms, f"{same} of {len(of_kind)}"])
    left = sum(result["orphans"] for result in results)
    print_table(f"{len(results)} kills, {torn} of them with a checkpoint half written; processes left: {left}", rows)
    write_json(options.output, {"bank": options.bank, "kills": results, "during_a_write": torn})
    sys.exit(good != len(results))


if __name__ == "__main__":
    main()
