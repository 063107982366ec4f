"""Times functions side by side, and measures peak memory; describes the machine."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pirl_plugin.launch.doctor import processor


def machine() -> dict:
    """What to report with every figure: processor, cores used, memory, versions, GPU."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def alternate(functions: dict[str, Callable[[], object]], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Seconds of each call; the functions take turns, so that other load on the machine affects them all."""
    for function in functions.values():
        for _ in range(warm_ups):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeats):
        for name, function in functions.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
        print(f"  repeat {number + 1} of {repeats}", flush=True)
    return seconds


def where_a_run_computes() -> torch.device:
    """The GPU if there is one, set up as VISSL's trainer does for a run, else the CPU."""
    torch.backends.cudnn.benchmark = True  # like Classy Vision's copy_model_to_gpu
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_extra_memory(function: Callable[[], object]) -> int | None:
    """Peak bytes that a call needs besides those held before: on the GPU, else in this process (Linux; else None)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - held
    try:
        # Freed memory that the C library keeps for reuse would hide what a call needs.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except (OSError, AttributeError):
        return None
    before = status_bytes("VmRSS")
    function()
    return max(0, status_bytes("VmHWM") - before)


def status_bytes(key: str) -> int:
    """VmRSS, VmHWM ... of this process, in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def median_ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


def print_table(title: str, rows: list[list[str]]) -> None:
    """Print a plain aligned table; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print(
            "  "
            + "  ".join(
                cell.rjust(width) if n else cell.ljust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


def write_json(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"\nWritten: {path}")
