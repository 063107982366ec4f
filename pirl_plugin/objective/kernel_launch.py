"""Block size and number of warps of the GPU kernels: the fastest of a few choices on the current GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Launch:
    """Block size and number of warps of a kernel.

    Attributes:
        rows: rows of the memory bank in a block, at least 16, as a matrix product needs.
        warps: warps per program.
    """

    rows: int
    warps: int

    def __str__(self) -> str:
        return f"{self.rows} rows and {self.warps} warps"


# Up to d = 128, the first spills no register on any GPU from compute capability 7.5 on; above, the last spills least.
LAUNCHES = (Launch(32, 4), Launch(32, 8), Launch(16, 4), Launch(16, 8))


def usual_launch(dim: int) -> Launch:
    """The default if nothing is timed, for vectors of `dim` numbers."""
    return LAUNCHES[0] if dim <= 128 else LAUNCHES[3]


def milliseconds(run: Callable[[], object]) -> float:
    """The time of a call on the current GPU, including synchronisation."""
    run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(5):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 5


def fastest_launch(what: str, dim: int, run: Callable[[Launch], object]) -> Launch:
    """The launch that makes `run` fastest, among those that the GPU accepts; the usual one if it accepts none.

    Args:
        what: name of what is run, for the log.
        dim: length of the vectors.
        run: launches the kernels; all launches give the same results, up to rounding.
    """
    times: dict[Launch, float] = {}
    for launch in LAUNCHES:
        try:
            times[launch] = milliseconds(lambda launch=launch: run(launch))  # type: ignore[misc]
        except Exception as error:  # too much shared memory, or none left to try it in
            logging.info(f"Kernels of {what} with {launch}: {type(error).__name__}: {str(error)[:200]}")
    if not times:
        return usual_launch(dim)
    best = min(times, key=lambda launch: times[launch])
    tried = ", ".join(f"{launch} {time:.2f} ms" for launch, time in times.items())
    logging.info(f"GPU kernels of {what}, d = {dim}: {best} ({tried})")
    return best
