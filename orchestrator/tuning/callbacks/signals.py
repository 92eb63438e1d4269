"""The callback that stops a sweep in order at the first SIGINT or SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.tune import Callback

from orchestrator.tuning.connection import in_main_thread

STOPPING = (signal.SIGINT, signal.SIGTERM)


class SignalsCallback(Callback):
    """Hands both signals to Ray Tune, which knows SIGINT alone; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.noted = False

    def setup(self, *_: Any, **info: Any) -> None:
        """Ray Tune's own handler is in place now."""
        if in_main_thread():
            self._of_tune: Any = signal.getsignal(signal.SIGINT)
            for number in STOPPING:
                signal.signal(number, self._note)

    def on_step_end(self, *_: Any, **info: Any) -> None:
        """Kills what still runs: Ray Tune would wait for it."""
        if self.noted:
            for trial in info["trials"]:
                if trial.temporary_state.ray_actor is not None:
                    ray.kill(trial.temporary_state.ray_actor)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = True
        self._of_tune(number, frame)
        signal.signal(signal.SIGINT, self._note)  # Ray Tune has taken its own away

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextmanager
def signals_restored() -> Iterator[None]:
    """Puts the handlers back that were there before."""
    if not in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
