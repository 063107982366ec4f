"""What is installed here, what the optional parts lack, and which configs this machine can run.

python extra_scripts/doctor.py
"""

import argparse
import sys

from pirl_plugin.launch.doctor import examine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-configs", action="store_true", help="leave out which configs can run")
    options = parser.parse_args()
    faults = 0
    for line in examine(configs=not options.no_configs):
        print(line, flush=True)
        faults += line.lstrip().startswith("!")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
