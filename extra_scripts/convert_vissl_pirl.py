"""`pirl convert-vissl`, also available here as a script."""

import sys

from pirl_plugin.commands.__main__ import main

if __name__ == "__main__":
    main(["convert-vissl", *sys.argv[1:]])
