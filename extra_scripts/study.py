"""`pirl study`, also available here as a script."""

import sys

from pirl_plugin.commands.__main__ import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
