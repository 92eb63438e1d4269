"""The command line `python -m orchestrator.report runs/NAME`."""

import sys

from orchestrator.commands.report import main

sys.exit(main())
