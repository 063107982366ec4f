"""`pirl make-voc-tree`, also available here as a script."""

import sys

from pirl_plugin.commands.__main__ import main

if __name__ == "__main__":
    main(["make-voc-tree", *sys.argv[1:]])
