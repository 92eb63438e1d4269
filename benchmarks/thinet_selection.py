"""ThiNet's choice of channels on the Gram matrix, against the report's loop over the samples.

    python -m benchmarks.thinet_selection [--rounds N] [--json]

10,000 samples of 64 and of 256 channels, float64, half of the channels go; building the Gram matrix
is part of the time. The loop is that of the pruning-methods report: for each candidate it takes the
columns of the channels chosen so far and the candidate's, and sums the squares of their sums. Both
make the same picks, or the benchmark fails. One thread.

At 256 channels the loop takes minutes: its first 16 picks are run, for their comparison, and its
time is extrapolated from three of the candidates at each pick. At 64 channels the whole loop runs;
how well the extrapolation does there is printed beside it.

The goals are for the loop in torch, which this project is written in. The same lines in NumPy,
which selects columns faster, are a contender without a goal (`over_numpy_loop`).
"""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from baselines.channels.contributions import gram_matrix
from baselines.channels.thinet import greedy_choice
from benchmarks.side_by_side import Goal, Result, Speed, arguments, show
from testbed.machine import set_threads

SAMPLES = 10_000
FIRST_PICKS = 16  # of the loop at 256 channels, to compare
CANDIDATES = 3  # at each pick, where the loop's time is extrapolated
CHOICES = 20  # by the Gram matrix in a row, long against the clock
GOALS = {
    "64_over_loop": Goal(at_least=300),
    "256_over_loop": Goal(at_least=3000),
}


def contributions(channels: int) -> Tensor:
    """(samples, channels) float64, correlated as those of a layer are."""
    generator = torch.Generator().manual_seed(channels)
    own = torch.randn(SAMPLES, channels, generator=generator, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return own + own @ mixing / channels**0.5


def compute_value(inputs: Any, chosen: list[int]) -> float:
    """The report's `ComputeValue`, on a torch tensor or a NumPy array."""
    return float((inputs[:, chosen].sum(-1) ** 2).sum())


def loop_picks(inputs: Any) -> Iterator[int]:
    """The report's `GreedyChannelSelection`: one pick after the other, without an end."""
    pruned: list[int] = []
    while True:
        lowest = float("inf")
        for channel in range(inputs.shape[1]):
            if channel in pruned:
                continue
            value = compute_value(inputs, [*pruned, channel])
            if value < lowest:
                lowest, pick = value, channel
        pruned.append(pick)
        yield pick


def timed_loop(inputs: Any, n: int) -> tuple[list[int], float]:
    """The loop's first n picks, and the seconds that they took."""
    started = time.perf_counter()
    picks = list(itertools.islice(loop_picks(inputs), n))
    return picks, time.perf_counter() - started


def estimated_seconds(inputs: Any, picks: list[int]) -> float:
    """Seconds of the whole loop, from a few candidates at each of its picks."""
    seconds = 0.0
    for step in range(len(picks)):
        chosen = picks[:step]
        candidates = [c for c in range(inputs.shape[1]) if c not in chosen]
        started = time.perf_counter()
        for candidate in candidates[:CANDIDATES]:
            compute_value(inputs, [*chosen, candidate])
        each = (time.perf_counter() - started) / CANDIDATES
        seconds += each * len(candidates)
    return seconds


def timed_gram(inputs: Tensor, n: int) -> tuple[list[int], float]:
    """Its picks, and the seconds that one choice takes, the Gram matrix included."""
    started = time.perf_counter()
    for _ in range(CHOICES):
        picks = greedy_choice(gram_matrix(inputs), n)
    return picks, (time.perf_counter() - started) / CHOICES


def compare(channels: int, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Ratios and notes of one number of channels, from the Gram matrix and the loops in turn."""
    inputs = contributions(channels)
    n, in_full = channels // 2, channels == 64
    libraries: dict[str, Any] = {"loop": inputs, "numpy_loop": inputs.numpy()}
    picks, _ = timed_gram(inputs, n)
    compared = picks if in_full else picks[:FIRST_PICKS]
    for given in libraries.values():
        found, _ = timed_loop(given, len(compared))
        if found != compared:
            raise AssertionError(f"The picks differ: {found} and {compared}.")
    seconds: dict[str, list[float]] = {"gram": [], "estimate": [], **{key: [] for key in libraries}}
    for _ in range(rounds):
        seconds["gram"].append(timed_gram(inputs, n)[1])
        seconds["estimate"].append(estimated_seconds(inputs, picks))
        for name, given in libraries.items():
            whole = timed_loop(given, n)[1] if in_full else estimated_seconds(given, picks)
            seconds[name].append(whole)
    speeds = {name: Speed(tuple(1 / each for each in found)) for name, found in seconds.items()}
    how = "in full" if in_full else f"extrapolated from {CANDIDATES} candidates at each pick"
    notes = {f"{channels} {name}": f"{1 / speeds[name].median:.2f} s, {how}" for name in libraries}
    notes[f"{channels} gram"] = f"{1e3 / speeds['gram'].median:.2f} ms"
    if in_full:
        share = speeds["loop"].over(speeds["estimate"])
        notes[f"{channels} loop, extrapolated as for 256"] = f"{share:.2f} of its time in full"
    ratios = {f"{channels}_over_{name}": speeds["gram"].over(speeds[name]) for name in libraries}
    return ratios, notes


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    options = parser.parse_args()
    set_threads(1)
    ratios: dict[str, float] = {}
    notes: dict[str, str] = {}
    for channels in (64, 256):
        found, noted = compare(channels, options.rounds)
        ratios |= found
        notes |= noted
    show(Result("thinet_selection", ratios, GOALS, notes), options.json)


if __name__ == "__main__":
    main()
