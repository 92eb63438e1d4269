"""Runs commands in a process of its own, and tells what was unpickled meanwhile.

    python -m tests.audited_process '[["orchestrator.report", "runs/small"]]'

The last line of its output is JSON: the globals that unpicklers looked up, with the file and line
that asked for it. Audit hooks cannot be taken back, hence the process.
"""

import importlib
import json
import pickle
import sys
import traceback
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


if __name__ == "__main__":
    sys.addaudithook(hear)
    for module, *arguments in json.loads(sys.argv[1]):
        if module == "unpickle":
            unpickle(*arguments)
            continue
        entry = importlib.import_module(module)
        status = entry.main(arguments)
        print(f"{module} {' '.join(arguments)}: {status}", flush=True)
        if status != 0:
            sys.exit(1)
    print(json.dumps(found))
