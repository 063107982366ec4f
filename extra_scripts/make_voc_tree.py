"""`pirl make-voc-tree`, for those who look here."""

import sys

from pirl_plugin.commands.__main__ import main

if __name__ == "__main__":
    main(["make-voc-tree", *sys.argv[1:]])
