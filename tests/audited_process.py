"""Runs commands in a process of its own, and tells what was unpickled meanwhile.

    python -m tests.audited_process '[["orchestrator.report", "runs/small"]]'

The last line of its output is JSON: for each command, the globals that unpicklers looked up, with
the file and line that asked for it. Audit hooks cannot be taken back, hence the process.
"""

import importlib
import json
import pickle
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

found: list[str] = []


def hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "pickle.find_class":
        caller = traceback.extract_stack()[-2]
        found.append(f"{args[0]}.{args[1]} at {caller.filename}:{caller.lineno}")


def unpickle(path: str) -> int:
    """What no command may do: the hook must hear of it."""
    with Path(path).open("rb") as file:
        pickle.load(file)
    return 0


def take_away(*modules: str) -> int:
    """As if they were not installed."""
    sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]
    return 0


def cut_last_row(path: str) -> int:
    """As if the driver had been killed before it was written."""
    rows = Path(path).read_text().splitlines(keepends=True)
    Path(path).write_text("".join(rows[:-1]))
    return 0


def measure_latencies_briefly() -> None:
    """As `conftest` has it for the trials of the tests' own process."""
    from testbed import measurement  # which imports torch

    measurement.measure_latency = partial(measurement.measure_latency, seconds=0.01)


if __name__ == "__main__":
    sys.addaudithook(hear)
    by_command: list[list[str]] = []
    for name, *arguments in json.loads(sys.argv[1]):
        if name in ("unpickle", "take_away", "cut_last_row"):
            status = globals()[name](*arguments)
        else:
            measure_latencies_briefly()
            status = importlib.import_module(name).main(arguments)
        print(f"{name} {' '.join(arguments)}: {status}", flush=True)
        if status != 0:
            sys.exit(1)
        by_command.append(found.copy())
        found.clear()
    print(json.dumps(by_command))
