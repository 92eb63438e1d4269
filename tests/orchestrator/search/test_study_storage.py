"""The studies outlive their driver: what a journal or a database holds is resumed."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from file_size import files_of_at_most
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from test_search import OBJECTIVES, ask_all, row, study

from orchestrator.plan import Trial
from orchestrator.search.proposer import Proposer
from orchestrator.search.study_storage import open_database, open_journal
from orchestrator.sweep_file import Search
from orchestrator.sweep_file.grids_and_ranges import Range


def proposer(
    storage: BaseStorage,
    rows: dict[str, Any] | None = None,
    sampler: str = "random",
    n_trials: int = 10,
    prefix: str = "",
) -> Proposer:
    search = Search(sampler=sampler)
    return Proposer([study(n_trials=n_trials)], OBJECTIVES, search, storage, rows, prefix)


def told(trial: Trial) -> dict[str, Any]:
    """Its row as `read_trials` would have it."""
    known = {"trial_id": trial.trial_id, "study": trial.study}
    return {**row(trial), **known, "l1_filter.keep_ratio": trial.options["keep_ratio"]}


def undisturbed(sampler: str = "random", n_trials: int = 10) -> dict[str, Trial]:
    trials = ask_all(proposer(InMemoryStorage(), sampler=sampler, n_trials=n_trials))
    return {trial.trial_id: trial for trial in trials}


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_a_study_that_goes_on_proposes_what_an_undisturbed_one_does(
    sampler: str, tmp_path: Path
) -> None:
    path, trials, rows = tmp_path / "studies.journal", {}, {}
    for _ in range(5):  # drivers, of which each is killed with two trials running
        proposing = proposer(open_journal(path), rows, sampler)
        for number in range(4):
            if (trial := proposing.ask()) is None:
                break
            assert trials.setdefault(trial.trial_id, trial) == trial
            if number < 2:
                rows[trial.trial_id] = told(trial)
                proposing.tell(trial.trial_id, rows[trial.trial_id])
    assert trials == undisturbed(sampler)
    assert proposer(open_journal(path), rows, sampler).ask() is None


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_that_learns_proposes_nothing_twice_when_it_is_resumed(
    sampler: str, tmp_path: Path
) -> None:
    path, rows = tmp_path / "studies.journal", {}
    for _ in range(10):
        proposing = proposer(open_journal(path), rows, sampler)
        trial = proposing.ask()
        assert trial
        rows[trial.trial_id] = told(trial)
        proposing.tell(trial.trial_id, rows[trial.trial_id])
    assert len({row["l1_filter.keep_ratio"] for row in rows.values()}) == 10


def test_a_row_that_was_not_told_is_told_and_its_trial_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "studies.journal"
    first = proposer(open_journal(path)).ask()
    assert first
    again = proposer(open_journal(path), {first.trial_id: told(first)})
    assert again.left == 9
    (kept,) = optuna.load_study(study_name="l1", storage=open_journal(path)).trials
    assert kept.state is TrialState.COMPLETE
    assert kept.values == [told(first)[name] for name in OBJECTIVES]


def test_a_told_trial_without_a_row_is_run_again_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "studies.journal"
    proposing = proposer(open_journal(path))
    first = proposing.ask()
    assert first
    proposing.tell(first.trial_id, told(first))
    again = proposer(open_journal(path))
    assert again.left == 10
    assert again.ask() == first
    again.tell(first.trial_id, told(first))
    states = [
        t.state for t in optuna.load_study(study_name="l1", storage=open_journal(path)).trials
    ]
    assert states == [TrialState.COMPLETE]


def test_a_failed_trial_that_is_tried_again_is_told_when_it_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "studies.journal"
    proposing = proposer(open_journal(path), sampler="random")
    rows = {}
    for number in range(4):
        trial = proposing.ask()
        assert trial
        failed = {"status": "failed", "error": "ValueError: no"} if number == 1 else {}
        rows[trial.trial_id] = told(trial) | failed
        proposing.tell(trial.trial_id, rows[trial.trial_id])
    failed_id = "l1-001"
    del rows[failed_id]  # which is what --retry-failed does

    again = proposer(open_journal(path), rows)
    assert again.left == 7
    trials = ask_all(again)
    assert trials[0].trial_id == failed_id
    assert {trial.trial_id: trial for trial in trials}.items() <= undisturbed().items()

    study_now = optuna.load_study(study_name="l1", storage=open_journal(path))
    completed = [t for t in study_now.trials if t.state is TrialState.COMPLETE]
    assert sorted(t.user_attrs["trial_id"] for t in completed) == sorted(undisturbed())
    rows = {trial_id: told(trial) for trial_id, trial in undisturbed().items()}
    assert proposer(open_journal(path), rows).left == 0


def test_a_lost_journal_is_told_again_what_the_rows_have(tmp_path: Path) -> None:
    """Also of trials that ended out of turn: 3 and 5 have rows, 4 was running."""
    trials = undisturbed()
    rows = {f"l1-00{number}": told(trials[f"l1-00{number}"]) for number in (0, 1, 2, 3, 5)}
    again = proposer(open_journal(tmp_path / "studies.journal"), rows)
    rest = ask_all(again)
    assert [trial.trial_id for trial in rest] == [f"l1-00{number}" for number in (4, 6, 7, 8, 9)]
    assert {trial.trial_id: trial for trial in rest}.items() <= trials.items()
    read = optuna.load_study(
        study_name="l1", storage=open_journal(tmp_path / "studies.journal")
    ).trials
    params = {t.user_attrs["trial_id"]: t.params["methods.l1_filter.keep_ratio"] for t in read}
    assert params == {id: trial.options["keep_ratio"] for id, trial in trials.items()}


def test_a_row_whose_options_are_not_of_the_study_is_named(tmp_path: Path) -> None:
    ranges = {"keep_ratio": Range("choice", (0.25, 0.5))}
    rows = {"l1-000": {"trial_id": "l1-000", "study": "l1", "status": "completed",
                       "l1_filter.keep_ratio": 0.3}}  # fmt: skip
    journal = open_journal(tmp_path / "studies.journal")
    with pytest.raises(ValueError, match=r"l1-000.*keep_ratio is 0\.3, expected choice of 0\.25"):
        Proposer([study(**ranges)], OBJECTIVES, Search(), journal, rows)


def test_a_driver_killed_while_it_proposed_costs_no_number(tmp_path: Path) -> None:
    """The journal, cut after every byte, is resumed, and proposes the same trials."""
    path, cut = tmp_path / "studies.journal", tmp_path / "cut.journal"
    expected = undisturbed(n_trials=3)
    rows: dict[str, Any] = {}
    proposing = proposer(open_journal(path), n_trials=3)
    written = {0: dict(rows)}  # bytes of the journal -> rows that had been written by then
    for _ in range(3):
        trial = proposing.ask()
        assert trial
        rows[trial.trial_id] = told(trial)
        written[path.stat().st_size] = dict(rows)
        proposing.tell(trial.trial_id, rows[trial.trial_id])
    content = path.read_bytes()
    for length in range(0, len(content) + 1, 7):
        cut.write_bytes(content[:length])
        known = written[max(size for size in written if size <= length)]
        trials = ask_all(proposer(open_journal(cut), known, n_trials=3))
        assert {trial.trial_id: trial for trial in trials} == {
            id: trial for id, trial in expected.items() if id not in known
        }


def test_a_cut_off_last_line_costs_no_line_before_it(tmp_path: Path) -> None:
    path = tmp_path / "studies.journal"
    ask_all(proposer(open_journal(path), n_trials=3))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(1, len(lines[-1]) + 1):
        path.write_bytes(whole[:-cut])
        open_journal(path)
        expected = whole if cut == 1 else b"".join(lines[:-1])  # only its line break is missing
        assert path.read_bytes() == expected


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b'{"op_code": 4, "tr{"op_code":5}', b"[]", b""])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_changed(
    damage: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "studies.journal"
    ask_all(proposer(open_journal(path), n_trials=3))
    lines = path.read_bytes().split(b"\n")
    damaged = b"\n".join([*lines[:4], damage, *lines[5:]])
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"studies\.journal, line 5: damaged"):
        open_journal(path)
    assert path.read_bytes() == damaged


def test_a_full_disk_leaves_no_part_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "studies.journal"
    proposing = proposer(open_journal(path))
    proposing.ask()
    before = path.read_bytes()
    with files_of_at_most(len(before) + 30), pytest.raises(OSError, match="File too large"):
        proposing.ask()
    assert path.read_bytes() == before
    assert all(json.loads(line) for line in before.splitlines())


def test_a_database_holds_sweeps_apart_and_resumes_them(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    first = proposer(open_database(url), prefix="a 1 ").ask()
    other = proposer(open_database(url), prefix="a 2 ").ask()
    assert first == other == undisturbed()["l1-000"]
    assert first
    again = proposer(open_database(url), {first.trial_id: told(first)}, prefix="a 1 ")
    assert ask_all(again)[0].trial_id == "l1-001"
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage=url)]
    assert names == ["a 1 l1", "a 2 l1"]


def test_a_database_that_cannot_be_opened_is_said() -> None:
    with pytest.raises(ValueError, match=r"storage: cannot open the database .*Expected a URL"):
        open_database("sqlite:////no/such/folder/studies.db")
    with pytest.raises(ValueError, match="storage: cannot open the database"):
        open_database("no_such_dialect://host/name")
