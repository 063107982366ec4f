"""kNN and nearest neighbours at ImageNet's size: the cost is calculated, and measured for a part of it here.

python benchmarks/neighbors.py              # 1/20 of the queries and of the bank: on a CPU, a minute
python benchmarks/neighbors.py --share 1    # 50,000 x 1,281,167 at d = 2,048, on a GPU; 10.5 GB of disk
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import peak_extra_memory, print_table, write_json

from pirl_plugin.evaluation.search import QUERIES_AT_ONCE, ROWS_AT_ONCE, nearest_neighbors
from pirl_plugin.network.devices import choose_device

QUERIES, ROWS, DIM, NEIGHBORS = 50_000, 1_281_167, 2_048, 200


def plan(queries: int, rows: int) -> dict[str, float]:
    """Multiplications and additions, bytes of the bank read, and bytes held at once, for float32 features."""
    at_once = min(rows, ROWS_AT_ONCE)
    return {
        "operations": 2.0 * queries * rows * DIM,
        "bank, bytes": 4.0 * rows * DIM,
        "held, bytes": 4.0 * (2 * at_once * DIM + 2 * min(queries, QUERIES_AT_ONCE) * (DIM + at_once)),
    }


def mapped(folder: Path, name: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Memory-mapped features on disk, as `pirl embed` writes them."""
    features = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, DIM))
    for first in range(0, rows, 4096):
        features[first : first + 4096] = rng.standard_normal((min(4096, rows - first), DIM), np.float32)
    features.flush()
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=20, metavar="n", help="1/n of the queries and of the rows")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/neighbors.json"))
    options = parser.parse_args()
    queries, rows = QUERIES // options.share, ROWS // options.share
    whole, part = plan(QUERIES, ROWS), plan(queries, rows)
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        of_queries, bank = (mapped(Path(folder), name, size, rng) for name, size in (("q", queries), ("bank", rows)))
        seconds: list[float] = []

        def search() -> None:
            started = time.perf_counter()
            nearest_neighbors(of_queries, bank, NEIGHBORS)
            seconds.append(time.perf_counter() - started)

        memory = peak_extra_memory(search)
    rate = part["operations"] / seconds[0]
    found = {"queries": queries, "rows": rows, "seconds": seconds[0], "memory": memory, "operations/s": rate}
    print_table(f"{NEIGHBORS} neighbours of {DIM} numbers on {choose_device()}", [
        ["", f"{queries:,} x {rows:,}", f"{QUERIES:,} x {ROWS:,}"],
        ["operations", f"{part['operations']:.2e}", f"{whole['operations']:.2e}"],
        ["bank, GB", f"{part['bank, bytes'] / 1e9:.2f}", f"{whole['bank, bytes'] / 1e9:.2f}"],
        ["held at once, GB, planned", f"{part['held, bytes'] / 1e9:.2f}", f"{whole['held, bytes'] / 1e9:.2f}"],
        ["  measured, with what is mapped", f"{(memory or 0) / 1e9:.2f}", ""],
        ["seconds", f"{seconds[0]:.1f}", f"{whole['operations'] / rate:,.0f} at this rate"],
        ["", "", f"{whole['operations'] / 4e13:,.0f} at 40 TFLOP/s in float32"],
    ])  # fmt: skip
    write_json(options.output, {"measured": found, "plan": whole})


if __name__ == "__main__":
    main()
