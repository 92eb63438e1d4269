"""The jobs of a sweep, and the outcomes that they hand to the driver."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.plan.dense_networks import DenseNetwork
from orchestrator.plan.shared_stages import SharedStage
from orchestrator.plan.trial import Trial
from orchestrator.sweep_file import EarlyStopping
from testbed.data import DataOptions


@dataclass(frozen=True)
class FinalTest:
    """A trial's network is to meet the test images."""

    trial: Trial


@dataclass(frozen=True)
class FailedTrial:
    """A trial that cannot run, since a dense network that it needs could not be trained."""

    trial: Trial
    error: str


@dataclass(frozen=True)
class WorkerStart:
    """Nothing: the first jobs of a sweep are fewer than its workers, which are to start at once."""


Job = DenseNetwork | SharedStage | Trial | FinalTest | FailedTrial


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial that has ended by itself, or that is stopped early."""

    row: dict[str, Any]
    """One row of trials.csv."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Class name -> layer -> mean multiplications of the class's validation images."""
    images: tuple[list[str], list[bool], list[int]] | None = None
    """Of a network that decides per image: class, correct and multiplications of each one."""
    warnings: tuple[str, ...] = ()
    """What was worth a warning on the way: a damaged file, say."""


@dataclass(frozen=True)
class StoredResult:
    """Outcome of a dense network or a shared stage: it is in the store."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TestResult:
    """Outcome of a final test: what a network does with the test images of its data set."""

    __test__ = False  # no test of pytest's

    accuracy: float
    """A fraction."""
    multiplications: float
    """Mean per image."""
    images: int
    """How many."""
    per_class: dict[str, dict[str, float]]
    """Class name -> layer -> mean multiplications of the class's test images."""


@dataclass(frozen=True)
class Lost:
    """Outcome of a job that came to nothing."""

    status: str
    """failed or stopped."""
    error: str
    """Its first line says what went wrong."""


INTERRUPTED = Lost("stopped", "Stopped: the sweep was interrupted.")


@dataclass(frozen=True)
class DiskIsFull:
    """Outcome of a job that could not write: no fault of its own, and no other could do better."""

    errno: int
    text: str


Outcome = TrialResult | StoredResult | TestResult | Lost | DiskIsFull


TellRung = Callable[[int, Mapping[str, float], TrialResult], None]
"""Told after how many epochs of fine-tuning, with which values of the objectives, and the outcome
of the trial if it is stopped there. It raises to stop it."""


@dataclass(frozen=True)
class AtRungs:
    """What a trial does at its rungs."""

    settings: EarlyStopping
    """Where they are."""
    latency: bool
    """Whether latency is an objective, and so to be measured there."""
    tell: TellRung


def job_name(job: Job) -> str:
    """A job's name, unlike any other's of the sweep; a trial's is its id."""
    match job:
        case DenseNetwork():
            given = {k: v for k, v in job.backbone_options.items() if v is not None}
            options = " ".join(f"{name}={value}" for name, value in given.items())
            return f"{job.backbone} {options} seed={job.seed}"
        case SharedStage():
            return f"first stage of {job.trial.trial_id} and others"
        case FinalTest():
            return f"{job.trial.trial_id} on test images"
        case FailedTrial():
            return job.trial.trial_id
    return job.trial_id


def trial_of(job: Job) -> Trial | None:
    """The trial that a job runs, if it runs one."""
    if isinstance(job, FailedTrial):
        return job.trial
    return job if isinstance(job, Trial) else None


def splits_key(data: DataOptions, seed: int) -> str:
    """What the splits of a data set and seed are shared under."""
    return f"{data.model_dump_json()} {seed}"
