"""The command `python -m orchestrator.trial`: run a sweep's trials in one plain process."""

import sys

from orchestrator.commands.trial import main

if __name__ == "__main__":
    sys.exit(main())
