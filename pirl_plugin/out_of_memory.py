"""Reports that memory ran out: the kernel kills a process silently, so the rest of the run must say so."""

from __future__ import annotations

import re
from pathlib import Path

# The main process fetches a tensor from the worker that made it, and may find that out before the worker's death.
_CONNECTION = "ConnectionResetError|ConnectionRefusedError|BrokenPipeError|EOFError|FileNotFoundError"
WORKER_GONE = (
    r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal: Killed|exited unexpectedly)"
    rf"|in rebuild_storage_fd$(?s:.*)^({_CONNECTION})\b"
)
COUNTERS = Path("/proc/vmstat")
LESS = (
    "use fewer workers (DATA.NUM_DATALOADER_WORKERS) or smaller batches (DATA.TRAIN.BATCHSIZE_PER_REPLICA), or ask for "
    "more memory"
)


def kills() -> int | None:
    """How many processes the kernel has killed so far for lack of memory on this machine; None if unknown."""
    try:
        found = re.search(r"^oom_kill (\d+)$", COUNTERS.read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


_before = kills()  # this module is imported as a program starts


def cause_of_a_kill() -> str:
    """The most likely reason why a process of this program was killed by SIGKILL, and what to do."""
    now = kills()
    if now is None or _before is None:
        return f"most likely by the kernel, because memory ran out; {LESS}"
    if now > _before:
        return f"by the kernel, because memory ran out ({now - _before} killed since the start); {LESS}"
    return "but not by the kernel: memory had not run out"


def in_words(error: str) -> str:
    """A sentence for an error caused by lack of memory; '' for any other error.

    Args:
        error: its text, or better its traceback.
    """
    if re.search(WORKER_GONE, error, flags=re.MULTILINE):
        return f"A worker that reads images was killed {cause_of_a_kill()}."
    if re.search(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) is killed by signal: Bus error", error):
        return f"A worker that reads images found no room in shared memory (/dev/shm); {LESS} there."
    found = re.search(r"CUDA out of memory\. Tried to allocate [\d.]+ \w+\.", error)
    if found:
        return (
            f"The GPU's memory ran out ({found.group()[:-1]}): use smaller batches (DATA.TRAIN.BATCHSIZE_PER_REPLICA), "
            f"accumulate gradients over parts of a batch (TRAINER.PIRL_TRAIN_STEP.accumulation_steps) or "
            f"TRAINER.PIRL_TRAIN_STEP.precision=bfloat16."
        )
    return ""
