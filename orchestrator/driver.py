"""The driver of a sweep: gives out its jobs, and takes every row to its tables as it comes.

`run_on_ray` proposes with Optuna, runs on Ray and tells MLflow. `run_in_this_process` does the same
trials one after another with none of the three. Both leave the same folder behind.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from orchestrator.jobs import do_job, splits_key
from orchestrator.notation import error_text
from orchestrator.plan import dense_networks, plain_trials, studies
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.schedule import Later
from orchestrator.sweep_file import Sweep, SweepFileError
from orchestrator.time_budget import TimeBudget
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Splits, load_splits


def run_on_ray(sweep: Sweep, folder: Path, data_root: Path, address: str | None) -> int:
    """Runs a sweep on a Ray cluster, or on a local one that is started for it.

    Returns:
        The exit status.

    Raises:
        SweepFileError: if the data cannot be loaded or the cluster not be used; no folder is left
            then.
    """
    from orchestrator.ray_connection import connected
    from orchestrator.ray_runner import Listener, check_resources, run_jobs
    from orchestrator.search import Proposer, n_tries, open_journal
    from orchestrator.tracking import Tracker

    planned = studies(sweep)
    total = sum(n_tries(study, sweep.search) for study in planned)
    budget = TimeBudget(sweep.search.hours)
    with ExitStack() as stack:
        with as_bad_input():
            shared = load_shared(sweep, data_root)
            check_networks(sweep, shared)
            stack.enter_context(connected(address))
            check_resources(sweep.resources)
            progress = stack.enter_context(Progress(total))
            record = Record(sweep, folder, data_root, progress)
        tracker = Tracker(sweep.name, folder.parent, progress.message)
        record.tracker = stack.enter_context(tracker)
        journal = open_journal(folder / "studies.journal")
        record.proposer = Proposer(planned, sweep.objectives, sweep.search, journal)
        finished = run_jobs(
            record.phases(budget.bounded(record.proposer.ask), total),
            work=partial(do_job, workplace=record.workplace),
            listener=Listener(
                record.started, record.reported, record.ended, record.lost, record.restarted
            ),
            resources=sweep.resources,
            shared=shared,
        )
        return record.finish(finished)


def run_in_this_process(sweep: Sweep, folder: Path, data_root: Path) -> int:
    """Runs a sweep of grids and fixed values, one trial after another.

    Returns:
        The exit status.

    Raises:
        SweepFileError: if an option is a range, the data cannot be loaded, or a GPU is asked for
            that is not there; no folder is left then.
    """
    with as_bad_input():
        trials = plain_trials(sweep)
        if sweep.resources.gpus and not torch.cuda.is_available():
            raise ValueError("resources.gpus: torch finds no GPU here. Set it to 0.")
        shared = load_shared(sweep, data_root)
        check_networks(sweep, shared)
    with Progress(len(trials)) as progress:
        with as_bad_input():
            record = Record(sweep, folder, data_root, progress)
        waiting = iter(trials)
        budget = TimeBudget(sweep.search.hours)
        for phase in record.phases(budget.bounded(lambda: next(waiting, None)), len(trials)):
            while (job := phase()) is not None:
                assert not isinstance(job, Later), "nothing runs that it could wait for"
                record.started(job)
                try:
                    result = do_job(
                        job, shared, partial(record.reported, job), workplace=record.workplace
                    )
                except KeyboardInterrupt:
                    record.lost(job, "stopped", "Stopped: the sweep was interrupted.")
                    return record.finish(whole=False)
                except Exception as error:
                    # A dense network that cannot be trained fails its trials, not the sweep.
                    record.lost(job, "failed", error_text(error))
                else:
                    record.ended(job, result)
        return record.finish(whole=True)


@contextmanager
def as_bad_input() -> Iterator[None]:
    """What goes wrong before the first job is for the user to mend, so it gets no traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SweepFileError([str(error)]) from error


def check_networks(sweep: Sweep, shared: Mapping[str, Splits]) -> None:
    """Builds every dense network that is known, untrained, before any is trained.

    Raises:
        ValueError: if one does not fit its images, say because they are too small for it.
    """
    for network in dense_networks(sweep):
        splits = shared[splits_key(network.data, network.seed)]
        build_backbone(
            network.backbone, splits.input_shape, splits.n_classes, **network.backbone_options
        )


def load_shared(sweep: Sweep, data_root: Path) -> dict[str, Splits]:
    """The splits of every data set and seed of the sweep, by `splits_key`."""
    shared: dict[str, Splits] = {}
    for study in studies(sweep):
        data = DataOptions.model_validate(study.options["data"])
        for seed in (study.seed, *sweep.fresh_seeds):
            key = splits_key(data, seed)
            if key not in shared:
                shared[key] = load_splits(data, data_root, seed)
                _ = shared[key].fingerprint  # worked out here once, and not in every worker
    return shared
