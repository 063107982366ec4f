"""`make bench`: every comparison with VISSL, each part in its own process, with its table and its JSON.

    make bench                          once
    python benchmarks/run.py --runs 3   three times; ends with the range of each ratio

Ratios vary with the machine's other load, VISSL's own step most of all: report ranges over separate runs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
PARTS = {"objective": "step_seconds", "input_pipeline": "batch_seconds", "training_step": "seconds"}


def ratios(part: str, path: Path) -> dict[str, float]:
    """How many times faster than VISSL each variant of a part was, and VISSL's own milliseconds."""
    seconds = {name: median(values) for name, values in json.loads(path.read_text())[PARTS[part]].items()}
    vissl = next(name for name in seconds if name.startswith("VISSL"))
    return {f"{vissl}, ms": 1000 * seconds[vissl]} | {
        name: seconds[vissl] / value for name, value in seconds.items() if name != vissl
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="a folder")
    options, others = parser.parse_known_args()
    found: dict[str, dict[str, list[float]]] = {part: {} for part in options.parts}
    for number in range(options.runs):
        for part in options.parts:
            print(f"== {part}, run {number + 1} of {options.runs} ==", flush=True)
            path = options.output / (f"{part}.json" if options.runs == 1 else f"{part}_run{number + 1}.json")
            subprocess.run([sys.executable, HERE / f"{part}.py", "--output", path, *others], check=True)
            for name, value in ratios(part, path).items():
                found[part].setdefault(name, []).append(value)
    if options.runs > 1:
        print(f"\nTimes faster than VISSL, smallest to largest of {options.runs} runs")
        for part, by_name in found.items():
            for name, values in by_name.items():
                digits = 0 if name.endswith("ms") else 2
                print(f"  {part:15} {name:36} {min(values):.{digits}f} to {max(values):.{digits}f}")


if __name__ == "__main__":
    main()
