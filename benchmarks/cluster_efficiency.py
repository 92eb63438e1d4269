"""What a sweep costs beside its trials: its span over that of the same trials in plain processes.

    python -m benchmarks.cluster_efficiency

A dozen trials of about ten seconds, one thread each. A sweep runs them on two Ray workers, with
its search, journal, tables, MLflow and reports; then two plain processes (`orchestrator.trial`)
run half of them each. Both find the dense network trained. A span is from the first trial's start
to the last one's end, as the rows have them; of the plain processes the longer one counts.
Everything inside a trial, the latency measurement say, is the same in both.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.run_folder.trials_table import read_trials

N_TRIALS, N_PROCESSES, ROUNDS = 12, 2, 3
# All keep the same channels, so that halves of them are equal.
KEEP_RATIOS = [0.5 + number / 1000 for number in range(N_TRIALS)]
SWEEP = """
data: {{name: digits, validation_share: 0.2}}
backbone: {{name: conv, depth: 4}}
training: {{epochs: 1}}
fine_tuning: {{epochs: {epochs}, learning_rate: 0.02}}
methods: {{l1_filter: {{keep_ratio: {{grid: {keep_ratios}}}}}}}
resources: {{cpus: {cpus}, threads: 1}}
"""


def sweep_file(folder: Path, name: str, keep_ratios: Sequence[float], epochs: int) -> Path:
    """As many trials at a time as there are plain processes, on however many cores."""
    cpus = max(1, (os.cpu_count() or 1) // N_PROCESSES)
    path = folder / f"{name}.yaml"
    path.write_text(SWEEP.format(epochs=epochs, keep_ratios=list(keep_ratios), cpus=cpus))
    return path


def start(module: str, sweep: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, str(sweep), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def span(table: pd.DataFrame) -> float:
    """Seconds from the first trial's start to the last one's end."""
    assert (table["status"] == "completed").all(), table["error"].dropna().tolist()
    starts = pd.to_datetime(table["started_at"])
    ends = starts + pd.to_timedelta(table["duration_s"], "s")
    return float((ends.max() - starts.min()).total_seconds())


def run(modules: Sequence[tuple[str, Path]], output: Path) -> list[pd.DataFrame]:
    """Runs sweep files at the same time, each by its module; their tables of trials."""
    processes = [start(module, sweep, output) for module, sweep in modules]
    assert [process.wait() for process in processes] == [0] * len(processes)
    return [read_trials(output / sweep.stem / "trials.csv") for _, sweep in modules]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=125, help="of a trial: about ten seconds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    ratios, durations = [], []
    with TemporaryDirectory() as name:
        folder = Path(name)
        output = folder / "runs"
        warm = sweep_file(folder, "warm", KEEP_RATIOS[:1], epochs=1)
        run([("orchestrator.trial", warm)], output)  # trains the dense network
        for number in range(args.rounds):
            sweep = sweep_file(folder, f"sweep{number}", KEEP_RATIOS, args.epochs)
            halves = [
                sweep_file(folder, f"plain{number}-{half}", KEEP_RATIOS[half::2], args.epochs)
                for half in range(N_PROCESSES)
            ]
            (by_sweep,) = run([("orchestrator.sweep", sweep)], output)
            plain = run([("orchestrator.trial", half) for half in halves], output)
            ratios.append(span(by_sweep) / max(map(span, plain)))
            durations.append(pd.concat(plain)["duration_s"].mean())
    ratio = f"span of a sweep over that of {N_PROCESSES} plain processes"
    notes = {"a trial took": f"{statistics.mean(durations):.1f} s in a plain process"}
    goals = {ratio: Goal(at_most=1 / 0.97)}
    show(Result("cluster_efficiency", {ratio: statistics.median(ratios)}, goals, notes), args.json)


if __name__ == "__main__":
    main()
