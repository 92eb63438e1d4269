"""The command line `python -m orchestrator.report runs/NAME`."""

import sys

from orchestrator.report.page import main

sys.exit(main())
