"""The command `python -m orchestrator.choose`: name the network to ship, and export it."""

import sys

from orchestrator.commands.choose import main

if __name__ == "__main__":
    sys.exit(main())
