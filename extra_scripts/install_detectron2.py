"""`pirl install-detectron2`, also available here as a script."""

import sys

from pirl_plugin.commands.__main__ import main

if __name__ == "__main__":
    main(["install-detectron2", *sys.argv[1:]])
