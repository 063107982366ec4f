"""Allows one run at a time in a checkpoint folder: a lock file names the run and is ignored once the run is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pirl_plugin import early_stop
from pirl_plugin.paths import unfinished
from pirl_plugin.validation import ConfigError

NAME = "running.json"
BEAT_SECONDS = 20.0  # how often the owner touches it
STALE_SECONDS = 300.0  # if untouched for this long, its owner is gone, wherever it ran
# Identify a job that was requeued or restarted, which may take over its own lock.
JOBS = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")


def _started(pid: int) -> str | None:
    """When a process on this machine was started, in ticks since boot; None if it is gone or dead (Linux)."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if state in "ZX" else values[18]
    except (OSError, IndexError):
        return None


def _machine() -> str:
    """Identifies the PID namespace: containers on one host have their own process numbers."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def owner() -> dict[str, Any]:
    """This process, as recorded in the lock file."""
    # torchrun names a run "none" if it was given no name.
    job = next((f"{name} {os.environ[name]}" for name in JOBS if os.environ.get(name, "none") not in ("", "none")), "")
    place = {"host": socket.gethostname(), "machine": _machine()}
    return {**place, "pid": os.getpid(), "started": _started(os.getpid()), "job": job}


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the file system's own clock, which may be another machine's."""
    probe = unfinished(path).with_suffix(".probe")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_gone(path: Path) -> bool:
    """Whether the run that a file names has ended without deleting it."""
    me, other = owner(), _read(path)
    if other.get("machine") == me["machine"]:
        started = _started(int(other.get("pid", 0)))
        return started is None or started != other.get("started")
    if me["job"] and other.get("job") == me["job"]:
        return True
    try:
        return _age(path) > STALE_SECONDS
    except FileNotFoundError:  # it has just ended
        return True


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # deleted meanwhile, or cut short by a full disk
    return content if isinstance(content, dict) else {}


def _take(path: Path) -> None:
    """Create the lock file atomically; it must not exist: if two processes try, one fails.

    Raises:
        ConfigError: if another run holds it.
    """
    own = unfinished(path)
    own.write_text(json.dumps(owner()), encoding="utf-8")
    try:
        for _ in range(2):
            with contextlib.suppress(FileExistsError):
                _link(own, path)
                return
            other = _read(path)
            if not _is_gone(path):
                job = f", {other['job']}" if other.get("job") else ""
                raise ConfigError(
                    f"CHECKPOINT.DIR is {path.parent}, where another run is training (process {other.get('pid')} on "
                    f"{other.get('host')}{job}): give this run another folder or, if that one has ended, delete "
                    f"{path}."
                )
            _put_aside(path, other)
    finally:
        own.unlink(missing_ok=True)
    raise ConfigError(f"CHECKPOINT.DIR is {path.parent}, where another run has just started; give it another folder.")


def _link(own: Path, path: Path) -> None:
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("x", encoding="utf-8") as file:
            file.write(own.read_text(encoding="utf-8"))


def _put_aside(path: Path, judged: dict[str, Any]) -> None:
    """Delete the lock file of a run that is gone, but not one that has replaced it meanwhile."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.gone")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != judged:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


@contextlib.contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Hold a checkpoint folder, and delete unfinished files of earlier runs.

    Raises:
        ConfigError: if another run holds it, naming its process, host and job.
    """
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    _take(path)
    for torn in path.parent.glob("*.unfinished"):
        torn.unlink(missing_ok=True)
    early_stop.to_delete.add(str(path))
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
        early_stop.to_delete.discard(str(path))
        if _read(path) == owner():
            path.unlink(missing_ok=True)
