"""The order of dense networks and trials."""

from collections.abc import Iterable

from orchestrator.driver.schedule import MOST_WAITING, Later, Schedule

from orchestrator.plan import DenseNetwork, Trial, networks_of
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


def network(depth: int) -> DenseNetwork:
    return networks_of(trial(0, depth))[0]


class Sweep:
    """A schedule and what it gave up."""

    def __init__(self, trials: Iterable[Trial], known: Iterable[DenseNetwork] = ()) -> None:
        self.asked = 0
        self.given_up: list[tuple[str, str]] = []
        waiting = iter(trials)

        def ask() -> Trial | None:
            self.asked += 1
            return next(waiting, None)

        self.schedule = Schedule(
            list(known), ask, lambda given, error: self.given_up.append((given.trial_id, error))
        )

    def next(self) -> str | None:
        """What comes: "0" for trial 0, "depth 4" for a network, "later"."""
        job = self.schedule.next()
        if isinstance(job, Later):
            return "later"
        if isinstance(job, DenseNetwork):
            return f"depth {job.backbone_options['depth']}"
        return job and job.trial_id


def test_known_networks_come_before_all_trials_and_only_once() -> None:
    sweep = Sweep([trial(0, 4), trial(1, 6)], [network(4), network(6)])

    assert [sweep.next(), sweep.next(), sweep.next()] == ["depth 4", "depth 6", "later"]
    sweep.schedule.trained(network(6))
    assert [sweep.next(), sweep.next()] == ["1", "later"], "the one that can run, before its turn"
    sweep.schedule.trained(network(4))
    assert [sweep.next(), sweep.next()] == ["0", None]


def test_a_network_that_only_the_search_knows_is_trained_once_and_its_trials_wait() -> None:
    sweep = Sweep([trial(0, 4), trial(1, 4), trial(2, 6), trial(3, 4)])

    assert [sweep.next() for _ in range(3)] == ["depth 4", "depth 6", "later"]
    sweep.schedule.trained(network(4))
    assert [sweep.next() for _ in range(4)] == ["0", "1", "3", "later"]
    sweep.schedule.trained(network(6))
    assert [sweep.next() for _ in range(2)] == ["2", None]


def test_a_teacher_comes_before_the_trial_that_distils_from_it() -> None:
    sweep = Sweep([trial(0, 4, teacher=8)])

    assert [sweep.next() for _ in range(3)] == ["depth 4", "depth 8", "later"]
    sweep.schedule.trained(network(4))
    assert sweep.next() == "later"
    sweep.schedule.trained(network(8))
    assert sweep.next() == "0"


def test_a_student_waits_for_its_teacher_and_fails_with_it() -> None:
    distilled = Training(epochs=2, distillation=Distillation(teacher={"depth": 8}, weight=0.5))
    taught = trial(0, 4).model_copy(update={"training": distilled})
    teacher, student = networks_of(taught)
    assert student.teacher == teacher
    sweep = Sweep([taught, trial(1, 6)], [teacher, student])

    assert [sweep.next() for _ in range(3)] == ["depth 8", "depth 6", "later"]
    sweep.schedule.failed(teacher, "diverged")
    sweep.schedule.trained(network(6))
    assert [sweep.next() for _ in range(2)] == ["1", None]
    assert sweep.given_up == [("0", "diverged")]


def test_trials_of_a_failed_network_are_given_up_without_a_try() -> None:
    sweep = Sweep([trial(number, 4) for number in range(30)], [network(4)])
    sweep.next()
    sweep.schedule.failed(network(4), "no memory")

    assert sweep.next() is None
    assert sweep.given_up == [(str(number), "no memory") for number in range(30)]


def test_few_trials_are_asked_for_ahead() -> None:
    sweep = Sweep([trial(number, 4) for number in range(100)])

    assert [sweep.next(), sweep.next()] == ["depth 4", "later"]
    assert sweep.asked == MOST_WAITING


def test_none_waits_where_its_network_is_there() -> None:
    sweep = Sweep([trial(number, 4) for number in range(3)], [network(4)])
    sweep.next()
    sweep.schedule.trained(network(4))

    for number in range(3):
        assert sweep.next() == str(number)
        assert sweep.asked == number + 1
    assert sweep.next() is None
