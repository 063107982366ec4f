"""`make bench`: every measurement beside VISSL, one after the other, each with its table and its JSON."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("objective", "input_pipeline", "training_step")


def main() -> None:
    sys.path.insert(0, str(HERE))
    arguments = sys.argv[1:]
    for part in PARTS:
        print(f"== {part} ==", flush=True)
        sys.argv = [f"{part}.py", *arguments]
        runpy.run_path(str(HERE / f"{part}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
