"""The driver of a sweep: gives out its jobs, and takes every row to its tables as it comes.

`run_on_ray` proposes with Optuna, runs on Ray and tells MLflow. `run_in_this_process` does the same
trials one after another with none of the three. Both leave the same folder behind.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from orchestrator.console.progress import Progress
from orchestrator.driver.record import Record
from orchestrator.driver.schedule import Later
from orchestrator.formatting import error_text
from orchestrator.jobs.work import do_job, splits_key
from orchestrator.methods import method_class
from orchestrator.plan import (
    DenseNetwork,
    Trial,
    dense_network,
    dense_networks,
    n_tries,
    plain_trials,
    studies,
)
from orchestrator.run_folder.folder import move_aside, sweep_id
from orchestrator.search.time_budget import TimeBudget, spent
from orchestrator.sweep_file import Sweep, SweepFileError
from orchestrator.tracking.outbox import Outbox
from testbed.backbones import build_backbone
from testbed.data import DataOptions, Splits, load_splits
from testbed.method import ChecksNetwork

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

LOOKING = "Looking at the images, networks and methods."
SEEN_BY_METHODS = {"method", "options", "data", "backbone", "backbone_options"}  # of a trial


@dataclass(frozen=True)
class Begun:
    """What is to become of a run folder that is there already."""

    fresh: bool = False
    """It is moved aside. Otherwise its sweep goes on."""
    retry_failed: bool = False
    """Trials that failed are run again."""


def run_on_ray(
    sweep: Sweep, folder: Path, data_root: Path, address: str | None, begun: Begun
) -> int:
    """Runs a sweep on a Ray cluster, or on a local one that is started for it.

    Returns:
        The exit status.

    Raises:
        SweepFileError: if the data cannot be loaded or the cluster not be used, in which case no
            folder is left that was not there; or if no worker process can start.
    """
    from orchestrator.search.proposer import Proposer
    from orchestrator.search.study_storage import open_database, open_journal
    from orchestrator.tracking.tracker import Tracker

    planned = studies(sweep)
    with ExitStack() as stack:
        progress = Progress(sum(n_tries(study, sweep.search) for study in planned))

        def opened() -> tuple[Record, Proposer]:
            record = _open_record(sweep, folder, data_root, progress, begun)
            storage = database or open_journal(folder / "studies.journal")
            prefix = f"{sweep.name} {sweep_id(folder)} " if database else ""
            searched = {id: row for id, row in record.rows.items() if row["phase"] == "search"}
            proposer = Proposer(planned, sweep.objectives, sweep.search, storage, searched, prefix)
            record.proposer, record.find_trial = proposer, proposer.trial
            return record, proposer

        with as_bad_input():
            database = open_database(sweep.storage) if sweep.storage else None
            goes_on = folder.exists() and not begun.fresh
            if goes_on:
                record, proposer = opened()
            nothing_left = goes_on and record.nothing_left()
            if not nothing_left:  # a finished sweep needs neither its data nor Ray
                from orchestrator.tuning.connection import connected
                from orchestrator.tuning.ray_runner import (
                    Listener,
                    NoWorkerError,
                    check_resources,
                    run_jobs,
                )

                progress.message(LOOKING)
                shared = load_shared(sweep, data_root)
                check_networks(sweep, shared)
                if not goes_on:  # else what they refuse are failed trials of it
                    check_methods(sweep, shared)
                stack.enter_context(connected(address))
                check_resources(sweep.resources)
            if not goes_on:
                record, proposer = opened()
        stack.enter_context(progress)
        if not nothing_left or len(Outbox(folder)):
            tracker = Tracker(
                sweep.name, folder.parent, progress.message, goes_on, list(sweep.methods)
            )
            record.tracker = tracker
            stack.callback(_say_where, tracker, progress)
            stack.enter_context(tracker)
        if nothing_left:
            return record.finish(whole=True)
        budget = _time_budget(sweep, record)
        try:
            finished = run_jobs(
                record.phases(lambda: proposer.ask(new=not budget.is_over()), proposer.left),
                work=partial(do_job, workplace=record.workplace),
                listener=Listener(
                    record.started, record.reported, record.ended, record.lost, record.restarted
                ),
                resources=sweep.resources,
                shared=shared,
                expected=proposer.left + len(dense_networks(sweep)),
            )
        except NoWorkerError as error:
            raise SweepFileError([str(error)]) from error
        return record.finish(finished)


def run_in_this_process(sweep: Sweep, folder: Path, data_root: Path, begun: Begun) -> int:
    """Runs a sweep of grids and fixed values, one trial after another.

    Returns:
        The exit status.

    Raises:
        SweepFileError: if an option is a range, the data cannot be loaded, or a GPU is asked for
            that is not there; no folder is left then that was not there.
    """
    with as_bad_input():
        trials = {trial.trial_id: trial for trial in plain_trials(sweep)}
        progress = Progress(len(trials))
        if sweep.resources.gpus and not torch.cuda.is_available():
            raise ValueError("resources.gpus: torch finds no GPU here. Set it to 0.")
        progress.message(LOOKING)
        shared = load_shared(sweep, data_root)
        check_networks(sweep, shared)
        if begun.fresh or not folder.exists():
            check_methods(sweep, shared)
    with progress:
        with as_bad_input():
            record = _open_record(sweep, folder, data_root, progress, begun)
        record.find_trial = trials.__getitem__
        left = [trial for trial_id, trial in trials.items() if trial_id not in record.rows]
        waiting = iter(left)
        budget = _time_budget(sweep, record)

        def ask() -> Trial | None:
            return None if budget.is_over() else next(waiting, None)

        try:
            for phase in record.phases(ask, len(left)):
                while (job := phase()) is not None:
                    assert not isinstance(job, Later), "nothing runs that it could wait for"
                    record.started(job)
                    try:
                        result = do_job(
                            job, shared, partial(record.reported, job), workplace=record.workplace
                        )
                    except KeyboardInterrupt:
                        record.lost(job, "stopped", "Stopped: the sweep was interrupted.")
                        raise
                    except Exception as error:
                        # A dense network that cannot be trained fails its trials, not the sweep.
                        record.lost(job, "failed", error_text(error))
                    else:
                        record.ended(job, result)
        except KeyboardInterrupt:  # in a job, or between two
            return record.finish(whole=False)
        return record.finish(whole=True)


def _open_record(
    sweep: Sweep, folder: Path, data_root: Path, progress: Progress, begun: Begun
) -> Record:
    """The record of a sweep that begins, or that goes on in its folder."""
    if begun.fresh and folder.exists():
        progress.message(f"{folder} is kept as {move_aside(folder)}.")
    goes_on = folder.exists()
    record = Record(sweep, folder, data_root, progress, begun.retry_failed)
    if goes_on:
        done = len(record.rows)
        trials = "1 trial has" if done == 1 else f"{done:,} trials have"
        progress.message(f"Going on in {folder}: {trials} ended before.")
    return record


def _say_where(tracker: "Tracker", progress: Progress) -> None:
    if tracker.where:
        progress.message(tracker.where)


def _time_budget(sweep: Sweep, record: Record) -> TimeBudget:
    """The sweep's hours, those of the drivers before counted in."""
    return TimeBudget(sweep.search.hours, spent(record.spans))


@contextmanager
def as_bad_input() -> Iterator[None]:
    """What goes wrong before the first job is for the user to mend, so it gets no traceback."""
    try:
        yield
    except SweepFileError:
        raise
    except (ValueError, OSError) as error:
        raise SweepFileError([str(error)]) from error


def check_networks(sweep: Sweep, shared: Mapping[str, Splits]) -> None:
    """Builds every dense network that is known, untrained, before any is trained.

    Raises:
        ValueError: if one does not fit its images, say because they are too small for it.
    """
    for network in dense_networks(sweep):
        _untrained(network, shared)


def check_methods(sweep: Sweep, shared: Mapping[str, Splits]) -> None:
    """Has methods look at the untrained networks that they are to prune.

    What is searched in `training` and `fine_tuning` does not matter to them; studies that search
    anything else are left to their trials.

    Raises:
        SweepFileError: with all that they refuse.
    """
    problems: list[str] = []
    looked_at: set[str] = set()
    for study in studies(sweep):
        if any(not path.startswith(("training.", "fine_tuning.")) for path in study.ranges):
            continue
        trial = study.trial(0, study.values(lambda _, found: found.drawn[0]))
        seen = trial.model_dump_json(include=SEEN_BY_METHODS)
        method = method_class(trial.method).model_validate(trial.options)
        if seen in looked_at or not isinstance(method, ChecksNetwork):
            continue
        looked_at.add(seen)
        splits = shared[splits_key(trial.data, trial.seed)]
        try:
            method.check_network(_untrained(dense_network(trial), shared), splits)
        except ValueError as error:
            problems.append(f"{study.name}: {error}")
        except Exception:
            # A user's forward may raise anything, or need what the CPU lacks: its trials will tell.
            continue
    if problems:
        raise SweepFileError(problems)


def _untrained(network: DenseNetwork, shared: Mapping[str, Splits]) -> nn.Module:
    splits = shared[splits_key(network.data, network.seed)]
    return build_backbone(
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
