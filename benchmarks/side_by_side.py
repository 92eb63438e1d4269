"""Contenders measured in turn in one process, their ratios, and whether these meet their goals.

The speed of a machine drifts (other users, clocks), so a figure from one minute beside a figure
from another says little. Here every round runs each contender once, and a ratio is the median over
rounds of the ratio within the round.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from testbed.machine import device_name

Work = Callable[[], int]
"""Does a piece of work and returns how many units it did (images, trials)."""

_SIGNS = {"at_least": ">=", "at_most": "<="}


@dataclass(frozen=True)
class Speed:
    """Units per second of one contender, a value for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: "Speed") -> float:
        """How many times as fast as `other`: the median of the ratios within the rounds."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def __str__(self) -> str:
        return f"{self.median:,.0f}/s (from {min(self.rounds):,.0f} to {max(self.rounds):,.0f})"


@dataclass(frozen=True)
class Goal:
    """The bounds that a ratio is held to: one of them, or both."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def bounds(self) -> dict[str, float]:
        given = {"at_least": self.at_least, "at_most": self.at_most}
        return {kind: bound for kind, bound in given.items() if bound is not None}

    def __str__(self) -> str:
        return " and ".join(f"{_SIGNS[kind]} {bound:g}" for kind, bound in self.bounds().items())


def measure(
    contenders: Mapping[str, Work], rounds: int = 7, device: torch.device | str = "cpu"
) -> dict[str, Speed]:
    """Runs every contender once to warm up, then once a round, in turn; the order alternates.

    A piece of work should take some tenths of a second, long against the clock and the scheduler.
    """

    def units_per_second(work: Work) -> float:
        started = time.perf_counter()
        units = work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return units / (time.perf_counter() - started)

    for work in contenders.values():
        units_per_second(work)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            speeds[name].append(units_per_second(contenders[name]))
        order.reverse()
    return {name: Speed(tuple(values)) for name, values in speeds.items()}


@dataclass(frozen=True)
class Result:
    """What one benchmark found. A goal belongs to the ratio of the same name."""

    benchmark: str
    ratios: Mapping[str, float]
    goals: Mapping[str, Goal]
    notes: Mapping[str, str] = field(default_factory=dict)  # printed above the ratios, as they are
    device: torch.device | str = "cpu"

    def __str__(self) -> str:
        threads = torch.get_num_threads()
        lines = [
            f"{self.benchmark} on {device_name(torch.device(self.device))}, threads: {threads}"
        ]
        lines += [f"  {name}: {note}" for name, note in self.notes.items()]
        for name, value in self.ratios.items():
            goal = self.goals.get(name)
            verdict = ""
            if goal is not None:
                verdict = f" (goal {goal}: {'met' if goal.met_by(value) else 'MISSED'})"
            lines.append(f"  {name}: {value:.3g}{verdict}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """One line: benchmark, ratios, goals, met, device, threads, versions."""
        return json.dumps(
            {
                "benchmark": self.benchmark,
                "ratios": dict(self.ratios),
                "goals": {name: goal.bounds() for name, goal in self.goals.items()},
                "met": {name: g.met_by(self.ratios[name]) for name, g in self.goals.items()},
                "device": device_name(torch.device(self.device)),
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            }
        )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line common to all benchmarks; add a benchmark's own options to it."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object, on one line")
    return parser


def show(result: Result, as_json: bool) -> None:
    """Prints the result for people and, if asked, once more for programs."""
    print(result)
    if as_json:
        print(result.to_json())
