"""One run at a time in a checkpoint folder: a file there says who trains, and counts for nothing when they are gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pirl_plugin.validation import ConfigError

NAME = "running.json"
BEAT_SECONDS = 20.0  # how often the owner touches it
STALE_SECONDS = 300.0  # untouched for so long, its owner is gone, wherever it ran
# Of a job that was put back into the queue or started again: it is its own predecessor.
JOBS = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks since boot; None where there is none (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def owner() -> dict[str, Any]:
    """This process, as the file names it."""
    # torchrun's run is called none where it was given no name.
    job = next((f"{name} {os.environ[name]}" for name in JOBS if os.environ.get(name, "none") not in ("", "none")), "")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "job": job}


def _is_gone(other: dict[str, Any], path: Path) -> bool:
    me = owner()
    if other.get("host") == me["host"]:
        started = _started(int(other.get("pid", 0)))
        return started is None or started != other.get("started")
    if me["job"] and other.get("job") == me["job"]:
        return True
    probe = path.with_name(f"{NAME}.{me['host']}.{me['pid']}")
    try:
        probe.touch()  # the file system's own clock, which may be another machine's
        return probe.stat().st_mtime - path.stat().st_mtime > STALE_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # gone meanwhile, or cut short by a full disk
    return content if isinstance(content, dict) else {}


def _take(path: Path) -> None:
    """Make the file, which must not be there: of two that try at once, one fails."""
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            other = _read(path)
            if other and not _is_gone(other, path):
                job = f", {other['job']}" if other.get("job") else ""
                raise ConfigError(
                    f"CHECKPOINT.DIR is {path.parent}, where another run is training (process {other.get('pid')} on "
                    f"{other.get('host')}{job}): give this one a folder of its own, or, if that one has ended, delete "
                    f"{path}."
                ) from None
            path.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner(), file)
        return
    raise ConfigError(f"CHECKPOINT.DIR is {path.parent}, where another run has just started; give it another folder.")


@contextlib.contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Hold a checkpoint folder; what writes of earlier runs were cut short is deleted.

    Raises:
        ConfigError: where another run holds it, naming its process, host and job.
    """
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    _take(path)
    for torn in path.parent.glob("*.unfinished"):
        torn.unlink(missing_ok=True)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _read(path) == owner():
            path.unlink(missing_ok=True)
