"""What asking and telling a trial costs each sampler, as its study grows.

    python -m benchmarks.sampler_growth [--trials 128 1024 10000]

One study of three ranges, told made-up figures; processor time of the last tenth of the trials, in
milliseconds each, with the studies in memory.
"""

import argparse
import time

import numpy as np
from optuna.storages import InMemoryStorage

from orchestrator.plan import Study
from orchestrator.search import Proposer
from orchestrator.sweep_file import Search
from orchestrator.sweep_file.option_values import Range

SAMPLERS = ("random", "grid", "nsga2", "tpe")
OBJECTIVES = {"val_accuracy": "maximize", "multiplications": "minimize"}


def ask_and_tell_ms(sampler: str, n_trials: int) -> float:
    """Milliseconds of processor time a trial, at the end of a study of `n_trials`."""
    options = {
        "data": {"name": "digits"},
        "backbone": {"name": "conv"},
        "training": {"epochs": 2},
        "fine_tuning": {"epochs": 1, "learning_rate": Range("log_uniform", 1e-3, 1.0)},
        "methods": {
            "l1_filter": {"keep_ratio": Range("uniform", 0.1, 0.9), "rounds": Range("int", 1, 4)}
        },
    }
    study = Study("growing", "all", "l1_filter", 0, n_trials, options)
    search = Search(sampler=sampler, trials=n_trials)
    proposer = Proposer([study], OBJECTIVES, search, InMemoryStorage())
    generator = np.random.default_rng(0)
    last = max(n_trials // 10, 1)
    for number in range(n_trials):
        if number == n_trials - last:
            started = time.process_time()
        trial = proposer.ask()
        assert trial is not None
        accuracy, cost = generator.random(2)
        row = {"status": "completed", "val_accuracy": accuracy, "multiplications": cost}
        proposer.tell(trial.trial_id, row)
    return 1000 * (time.process_time() - started) / last


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[128, 1024, 10_000])
    for n_trials in parser.parse_args().trials:
        for sampler in SAMPLERS:
            print(f"{sampler} at {n_trials:,}: {ask_and_tell_ms(sampler, n_trials):.1f} ms")


if __name__ == "__main__":
    main()
