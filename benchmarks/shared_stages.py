"""A study of ten penalties or budgets whose trials share their first steps, against single trials.

    python -m benchmarks.shared_stages [--of quick long groups cascade] [--rounds N] [--json]

On the digits. A single trial begins with nothing: it trains its dense network, then what it shares
with others, and then learns to decide; a study does the first two once, for ten trials. So a study
costs less than three trials where the first two take 3.5 times as long as all that comes after.

`quick` is RNP with the options of the quick sweep, whose trials share an adapted backbone. In
`long` a dense network twice as wide is trained for 40 epochs, and nine tenths of 20 epochs adapt
it. `groups` is `rnp_groups` with ten penalties, `cascade` ten budgets.

Jobs run one after another in this process, one thread, without report and test images. Measured is
CPU time, as trials take turns with whatever else the machine does.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from benchmarks.side_by_side import Goal, Result, arguments, show
from orchestrator.driver.checks import load_shared
from orchestrator.driver.coordinator import Coordinator, Wait
from orchestrator.driver.plain_trials import PlainTrials
from orchestrator.jobs.work import do_job
from orchestrator.plan import Plan, make_plan
from orchestrator.plan.jobs import Lost, job_name
from orchestrator.run_folder.trials_table import COLUMNS
from orchestrator.run_folder.workplace import Workplace
from orchestrator.sweep_file import load_sweep
from testbed.training import ignore

SWEEP_FILE = Path(__file__).parents[1] / "sweeps" / "digits_quick.yaml"
PENALTIES = [round(float(p), 4) for p in -np.geomspace(0.01, 0.3, 10)]
BUDGETS = [round(float(share), 2) for share in np.linspace(0.2, 0.9, 10)]
QUICK = f"p: {{grid: {PENALTIES}}}, steps: 300, encoding: 16, hidden: 32"
SETTINGS = {
    "quick": (f"rnp: {{{QUICK}}}", []),
    "long": (
        f"rnp: {{{QUICK}, adaptation: 0.9, rounds: 1}}",
        ["backbone.width=2", "training.epochs=40", "fine_tuning.epochs=20"],
    ),
    "groups": (f"rnp_groups: {{p: {{grid: {PENALTIES}}}}}", []),
    "cascade": (f"cascade: {{keep_multiplications: {{grid: {BUDGETS}}}}}", []),
}
GOAL = Goal(at_most=3)


def planned(setting: str) -> Plan:
    method, changes = SETTINGS[setting]
    return make_plan(load_sweep(SWEEP_FILE, [f"methods={{{method}}}", "confirm=null", *changes]))


def seconds(plan: Plan) -> dict[str, float]:
    """CPU time of each job, by its name, in a folder that is empty at first."""
    shared, took = load_shared(plan, Path()), {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        workplace = Workplace(folder, folder / "dense", folder, plan.sweep.resources)
        table = pd.DataFrame(columns=list(COLUMNS))
        coordinator = Coordinator(plan, PlainTrials(plan), lambda: table)
        while (job := coordinator.ask()) is not None:
            assert not isinstance(job, Wait), "nothing runs that it could wait for"
            started = time.process_time()
            outcome = do_job(job, shared, ignore, workplace=workplace)
            took[job_name(job)] = time.process_time() - started
            assert not isinstance(outcome, Lost), outcome.error
            coordinator.tell(job, outcome)
    return took


def compare(settings: Sequence[str], rounds: int) -> Result:
    ratios: dict[str, float] = {}
    notes: dict[str, str] = {}
    for setting in settings:
        found = []
        for _ in range(rounds):
            dense, stage, *trials = seconds(planned(setting)).values()
            own = sum(trials) / len(trials)
            found.append((dense + stage + sum(trials)) / (dense + stage + own))
        ratios[f"{setting}_study_over_single_trial"] = statistics.median(found)
        notes[f"{setting}, CPU seconds"] = (
            f"dense network {dense:.1f}, shared stage {stage:.1f}, "
            f"each of {len(trials)} trials then {own:.1f}"
        )
    return Result("shared_stages", ratios, dict.fromkeys(ratios, GOAL), notes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--of", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=1, help="how often each study runs")
    options = parser.parse_args()
    show(compare(options.of, options.rounds), options.json)


if __name__ == "__main__":
    main()
