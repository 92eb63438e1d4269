"""The command `python -m orchestrator.sweep`: run a pruning sweep on Ray Tune."""

import sys

from orchestrator.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main())
