"""The order of a sweep's jobs."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import pytest

from orchestrator.driver.coordinator import MOST_WAITING, Coordinator, Wait
from orchestrator.plan import DenseNetwork, Plan, SharedStage, Trial, networks_of
from orchestrator.plan.jobs import (
    FailedTrial,
    FinalTest,
    Job,
    Lost,
    StoredResult,
    TestResult,
    TrialResult,
    job_name,
)
from orchestrator.run_folder.trials_table import COLUMNS
from orchestrator.sweep_file import Sweep as SweepFile
from testbed.data import DataOptions
from testbed.training import Distillation, Training

DATA = DataOptions(name="digits")


def trial(number: int, depth: int, teacher: int | None = None) -> Trial:
    distillation = teacher and Distillation(teacher={"depth": teacher}, weight=0.5)
    return Trial(
        trial_id=str(number),
        study="study",
        cell="all",
        method="dense",
        options={},
        data=DATA,
        backbone="conv",
        backbone_options={"depth": depth},
        training=Training(epochs=2),
        fine_tuning=Training(epochs=1, distillation=distillation or None),
        seed=0,
    )


def network(depth: int, seed: int = 0) -> DenseNetwork:
    return networks_of(trial(0, depth).model_copy(update={"seed": seed}))[0]


class Given:
    """Trials one by one, and how they ended."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._waiting = list(trials)
        self.asked = 0
        self.rows: dict[str, Mapping[str, Any]] = {}

    @property
    def left(self) -> float:
        return len(self._waiting)

    def ask(self, new: bool = True) -> Trial | None:
        if not (new and self._waiting):
            return None
        self.asked += 1
        return self._waiting.pop(0)

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        self.rows[trial_id] = row

    def trial(self, trial_id: str) -> Trial:
        return trial(int(trial_id), 4)


class Sweep:
    """A coordinator, and the jobs that it gave."""

    def __init__(
        self,
        trials: Iterable[Trial],
        known: Iterable[DenseNetwork] = (),
        table: pd.DataFrame | None = None,
        confirm: int = 0,
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        sections = {"data": {"name": "digits"}, "backbone": {"name": "conv", "depth": 4}}
        confirmed = {"confirm": {"seeds": confirm}} if confirm else {}
        options = {**sections, "training": {}, "fine_tuning": {}, "methods": {"dense": {}}}
        sweep = SweepFile.model_validate({"name": "small", **options, **confirmed})
        self.trials = Given(trials)
        self.table = pd.DataFrame(columns=list(COLUMNS)) if table is None else table
        self.phases: list[tuple[str, float]] = []
        self.coordinator = Coordinator(
            Plan(sweep, (), tuple(known)),
            self.trials,
            lambda: self.table,
            may_start,
            lambda title, total: self.phases.append((title, total)),
        )
        self.jobs: dict[str, Job] = {}

    @property
    def asked(self) -> int:
        return self.trials.asked

    def next(self) -> str | None:
        """What comes: "0" for trial 0, "depth 4" for a network, "stage of 0", "later"."""
        job = self.coordinator.ask()
        if isinstance(job, Wait):
            return "later"
        if job is None:
            return None
        name = job_name(job)
        if isinstance(job, DenseNetwork):
            name = f"depth {job.backbone_options['depth']}"
        if isinstance(job, SharedStage):
            name = f"stage of {job.trial.trial_id}"
        self.jobs[name] = job
        return name

    def trained(self, network: DenseNetwork) -> None:
        self.coordinator.tell(network, StoredResult())

    def failed(self, network: DenseNetwork, error: str) -> None:
        self.coordinator.tell(network, Lost("failed", error))

    def made(self, name: str, outcome: Lost | StoredResult | None = None) -> None:
        """A shared stage is there, or is not."""
        self.coordinator.tell(self.jobs[name], outcome or StoredResult())

    def end(self, name: str) -> None:
        """A trial completes."""
        row = {"trial_id": name, "status": "completed"}
        self.coordinator.tell(self.jobs[name], TrialResult(row))

    def all_end(self) -> list[str | None]:
        """The names of all that come, each ended before the next is asked for."""
        found: list[str | None] = []
        while (name := self.next()) not in (None, "later"):
            found.append(name)
            assert name is not None
            job = self.jobs[name]
            if isinstance(job, DenseNetwork):
                self.trained(job)
            elif isinstance(job, FailedTrial):
                self.coordinator.tell(job, Lost("failed", job.error))
            elif isinstance(job, FinalTest):
                self.coordinator.tell(job, TestResult(0.5, 1.0, 10, {}))
            else:
                self.end(name)
        return [*found, name]


def test_known_networks_come_before_all_trials_and_only_once() -> None:
    sweep = Sweep([trial(0, 4), trial(1, 6)], [network(4), network(6)])

    assert [sweep.next(), sweep.next(), sweep.next()] == ["depth 4", "depth 6", "later"]
    sweep.trained(network(6))
    assert [sweep.next(), sweep.next()] == ["1", "later"], "the one that can run, before its turn"
    sweep.trained(network(4))
    assert [sweep.next(), sweep.next()] == ["0", "later"]
    sweep.end("0")
    sweep.end("1")
    assert sweep.next() is None


def test_a_network_that_only_the_search_knows_is_trained_once_and_its_trials_wait() -> None:
    sweep = Sweep([trial(0, 4), trial(1, 4), trial(2, 6), trial(3, 4)])

    assert [sweep.next() for _ in range(3)] == ["depth 4", "depth 6", "later"]
    sweep.trained(network(4))
    assert [sweep.next() for _ in range(4)] == ["0", "1", "3", "later"]
    sweep.trained(network(6))
    assert [sweep.next() for _ in range(2)] == ["2", "later"]


def test_a_teacher_comes_before_the_trial_that_distils_from_it() -> None:
    sweep = Sweep([trial(0, 4, teacher=8)])

    assert [sweep.next() for _ in range(3)] == ["depth 4", "depth 8", "later"]
    sweep.trained(network(4))
    assert sweep.next() == "later"
    sweep.trained(network(8))
    assert sweep.next() == "0"


def test_a_student_waits_for_its_teacher_and_fails_with_it() -> None:
    distilled = Training(epochs=2, distillation=Distillation(teacher={"depth": 8}, weight=0.5))
    taught = trial(0, 4).model_copy(update={"training": distilled})
    teacher, student = networks_of(taught)
    assert student.teacher == teacher
    sweep = Sweep([taught, trial(1, 6)], [teacher, student])

    assert [sweep.next() for _ in range(3)] == ["depth 8", "depth 6", "later"]
    sweep.failed(teacher, "diverged")
    sweep.trained(network(6))
    assert [sweep.next() for _ in range(3)] == ["0", "1", "later"]
    failed = sweep.jobs["0"]
    assert isinstance(failed, FailedTrial)
    assert failed.error == f"Its dense network ({job_name(teacher)}) failed: diverged"


def test_trials_of_a_failed_network_fail_with_its_error() -> None:
    sweep = Sweep([trial(number, 4) for number in range(30)], [network(4)])
    sweep.next()
    sweep.failed(network(4), "no memory")

    assert sweep.all_end() == [*map(str, range(30)), None]
    error = f"Its dense network ({job_name(network(4))}) failed: no memory"
    assert sweep.trials.rows["7"] == {"status": "failed", "error": error}
    assert len(sweep.trials.rows) == 30


def test_few_trials_are_asked_for_ahead() -> None:
    sweep = Sweep([trial(number, 4) for number in range(100)])

    assert [sweep.next(), sweep.next()] == ["depth 4", "later"]
    assert sweep.asked == MOST_WAITING


def test_none_waits_where_its_network_is_there() -> None:
    sweep = Sweep([trial(number, 4) for number in range(3)], [network(4)])
    sweep.next()
    sweep.trained(network(4))

    for number in range(3):
        assert sweep.next() == str(number)
        assert sweep.asked == number + 1
    assert sweep.next() == "later", "three run"


def rnp(number: int, depth: int = 4, **options: Any) -> Trial:
    return trial(number, depth).model_copy(update={"method": "rnp", "options": options})


def test_a_stage_is_made_once_after_its_dense_network_and_before_all_trials_that_share_it() -> None:
    sweep = Sweep([rnp(0, p=-0.1), rnp(1, p=-0.2), rnp(2, p=-0.2, steps=3)])

    assert [sweep.next(), sweep.next()] == ["depth 4", "later"]
    sweep.trained(network(4))
    assert [sweep.next(), sweep.next()] == ["stage of 0", "later"]
    sweep.made("stage of 0")
    assert [sweep.next() for _ in range(4)] == ["0", "1", "2", "later"]


def test_trials_of_other_methods_run_while_a_stage_is_made() -> None:
    sweep = Sweep([rnp(0), trial(1, 4), rnp(2)], [network(4)])
    sweep.next()
    sweep.trained(network(4))

    assert [sweep.next() for _ in range(3)] == ["stage of 0", "1", "later"]
    sweep.made("stage of 0")
    assert [sweep.next() for _ in range(2)] == ["0", "2"]


SHARING_NOTHING: list[dict[str, Any]] = [
    {"options": {"k": 2}},
    {"options": {"adaptation": 0.5}},
    {"method": "static_prefix"},
    {"seed": 1},
    {"backbone_options": {"depth": 6}},
    {"training": Training(epochs=3)},
    {"fine_tuning": Training(epochs=2)},
]


@pytest.mark.parametrize("changed", SHARING_NOTHING, ids=str)
def test_trials_that_differ_in_what_enters_have_stages_of_their_own(
    changed: dict[str, Any],
) -> None:
    ours, other = rnp(0), rnp(1).model_copy(update=changed)
    assert SharedStage(ours).key == SharedStage(rnp(1, p=-0.5, encoding=3)).key
    assert SharedStage(ours).key != SharedStage(other).key


def test_a_stage_that_failed_is_left_to_its_trials() -> None:
    """Each ends with an error of its own: the stage may have failed for options of one of them."""
    sweep = Sweep([rnp(0), rnp(1)], [network(4)])
    sweep.next()
    sweep.trained(network(4))
    assert sweep.next() == "stage of 0"
    sweep.made("stage of 0", Lost("failed", "diverged"))
    assert [sweep.next(), sweep.next()] == ["0", "1"]
    assert not any(isinstance(job, FailedTrial) for job in sweep.jobs.values())


def test_a_stage_fails_with_its_dense_network() -> None:
    sweep = Sweep([rnp(0)], [network(4)])
    sweep.next()
    sweep.failed(network(4), "diverged")
    assert sweep.all_end() == ["0", None]
    assert isinstance(sweep.jobs["0"], FailedTrial)


def test_confirmations_share_their_stages_too() -> None:
    front = pd.concat(
        [rows("0"), rows("1", val_accuracy=0.6, multiplications=2e6)], ignore_index=True
    )
    confirmed = Sweep([], [network(4, 1)], front, confirm=1)
    confirmed.trials.trial = lambda trial_id: rnp(int(trial_id), p=-float(trial_id))  # type: ignore[method-assign]
    confirmed.next()
    confirmed.trained(network(4, 1))
    assert [confirmed.next(), confirmed.next()] == ["stage of 0-c1", "later"]
    confirmed.made("stage of 0-c1")
    assert [confirmed.next() for _ in range(3)] == ["0-c1", "1-c1", "later"]


def rows(*trial_ids: str, **columns: Any) -> pd.DataFrame:
    """Completed rows, each on the Pareto front of its method."""
    front = {"val_accuracy": 0.5, "multiplications": 1e6, "cell": "all", "method": "dense"}
    fixed = {"status": "completed", "phase": "search", "seed": 0, "test_accuracy": math.nan}
    values = {**dict.fromkeys(COLUMNS), **front, **fixed, **columns}
    return pd.DataFrame([{**values, "trial_id": trial_id} for trial_id in trial_ids])


def test_a_part_begins_when_all_of_the_one_before_have_ended() -> None:
    sweep = Sweep([trial(0, 4), trial(1, 4)], [network(4)], rows("0", "1"))
    sweep.next()
    sweep.trained(network(4))
    assert [sweep.next() for _ in range(3)] == ["0", "1", "later"]
    sweep.end("0")
    assert sweep.next() == "later"
    sweep.end("1")
    assert [sweep.next() for _ in range(3)] == ["0 on test images", "1 on test images", "later"]
    assert sweep.phases == [("Trials", 2), ("Test images", 2)]


def test_what_is_on_a_front_is_confirmed_with_fresh_seeds_and_these_are_tested() -> None:
    sweep = Sweep([], [network(4, 1), network(4, 2)], rows("0"), confirm=2)
    for seed in (1, 2):
        assert sweep.next() == "depth 4"
        sweep.trained(network(4, seed))
    assert [sweep.next(), sweep.next()] == ["0-c1", "0-c2"]
    confirmations = rows("0-c1", phase="confirmation", confirms="0", seed=1)
    sweep.table = pd.concat([rows("0"), confirmations], ignore_index=True)
    sweep.end("0-c1")
    assert sweep.next() == "later"
    sweep.end("0-c2")
    assert [sweep.next(), sweep.next()] == ["0-c1 on test images", "later"]
    assert sweep.phases == [
        ("Trials", 0), ("Confirmation of the Pareto fronts", 2), ("Test images", 1)
    ]  # fmt: skip
    assert sweep.trials.rows == {}, "the search learns nothing from them"


def test_hours_that_are_over_start_no_new_trial() -> None:
    sweep = Sweep([trial(0, 4)], may_start=lambda: False)
    assert sweep.next() is None
    assert sweep.asked == 0


def test_nothing_is_left_when_all_have_been_tested() -> None:
    assert Sweep([], table=rows("0", test_accuracy=0.5)).coordinator.nothing_left
    assert not Sweep([], table=rows("0")).coordinator.nothing_left
    assert not Sweep([trial(0, 4)], table=rows("1", test_accuracy=0.5)).coordinator.nothing_left
    confirmed = Sweep([], table=rows("0"), confirm=1)
    assert not confirmed.coordinator.nothing_left
