"""Studies, trials and dense networks of a sweep."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_files import SWEEP

from orchestrator.plan import (
    DenseNetwork,
    Trial,
    dense_network,
    dense_networks,
    fine_tuning_teacher,
    make_plan,
    studies,
)
from orchestrator.sweep_file import SHARED, Sweep, SweepFileError, load_sweep
from orchestrator.sweep_file.grids_and_ranges import Range
from orchestrator.sweep_file.sections import n_trials

TEACHER = "distillation={teacher: {depth: 8}}"
ONE_CELL = ("backbone.depth=4", "backbone.dropout=0.0")


@pytest.fixture(autouse=True)
def _sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(SWEEP)


def sweep(*overrides: str) -> Sweep:
    return load_sweep(Path("my.yaml"), overrides)


def networks(of: Sweep) -> list[tuple[int, int | None]]:
    """The depth of every dense network, and of its teacher."""

    def depth(network: DenseNetwork) -> int:
        return int(network.backbone_options["depth"])

    return [
        (depth(network), depth(network.teacher) if network.teacher else None)
        for network in dense_networks(of)
    ]


def test_studies_come_by_cell_then_seed_then_method_then_its_own_grid() -> None:
    found = [
        study.name
        for study in studies(
            sweep(
                "backbone.depth={grid: [4, 6]}",
                "backbone.dropout=0.1",
                "seeds=[0, 1]",
                "methods={dense: {}, vanilla: {keep_ratio: {grid: [0.25, 0.5]}}}",
            )
        )
    ]
    assert found == [
        "dense-depth4-s0",
        "vanilla-depth4-keep_ratio0.25-s0",
        "vanilla-depth4-keep_ratio0.5-s0",
        "dense-depth4-s1",
        "vanilla-depth4-keep_ratio0.25-s1",
        "vanilla-depth4-keep_ratio0.5-s1",
        "dense-depth6-s0",
        "vanilla-depth6-keep_ratio0.25-s0",
        "vanilla-depth6-keep_ratio0.5-s0",
        "dense-depth6-s1",
        "vanilla-depth6-keep_ratio0.25-s1",
        "vanilla-depth6-keep_ratio0.5-s1",
    ]


def test_a_cell_is_named_by_the_shared_grids_alone() -> None:
    cells = [study.cell for study in studies(sweep())]
    assert list(dict.fromkeys(cells)) == [
        f"depth={depth} dropout={dropout}" for depth in (4, 6, 8) for dropout in (0.0, 0.1)
    ]
    assert {study.cell for study in studies(sweep(*ONE_CELL))} == {"all"}


def test_a_study_has_the_tries_of_the_search_only_where_it_has_a_range() -> None:
    tries = {study.method: study.n_trials for study in studies(sweep())}
    assert tries == {
        "dense": 1,
        "vanilla": 1,
        "random_channels": 10,
        "l1_filter": 10,
        "magnitude": 10,
    }


def test_the_number_of_trials_is_that_of_the_studies() -> None:
    for overrides in ([], ["seeds=[0, 1, 2]"], ["training.learning_rate={uniform: [0.1, 0.3]}"]):
        found = sweep(*overrides)
        shared = {section: getattr(found, section) for section in SHARED}
        counted = n_trials(shared, found.methods, len(found.seeds), found.search.trials)
        assert counted == sum(study.n_trials for study in studies(found))


def test_names_say_which_option_is_meant_where_two_are_called_the_same() -> None:
    found = studies(
        sweep(
            *ONE_CELL,
            "training.momentum={grid: [0.8, 0.9]}",
            "fine_tuning.momentum={grid: [0.5, 0.9]}",
            "data.name={grid: [digits, cifar10]}",
        )
    )
    assert found[0].cell == "data=digits training.momentum=0.8 fine_tuning.momentum=0.5"
    assert found[0].name == "dense-datadigits-training.momentum0.8-fine_tuning.momentum0.5-s0"


def test_trial_ids_are_unique_short_and_fit_for_file_names() -> None:
    long = ", ".join(f"'{'x' * 30}/{n}'" for n in range(3))
    found = studies(
        sweep(
            f"data.classes={{grid: [all, [{long}], [a b, a/b], [a_b, a.b]]}}",
            "training.learning_rate={log_uniform: [0.01, 0.1]}",
        )
    )
    ids = [f"{study.name}-{study.n_trials:06d}" for study in found]
    assert len({name.lower() for name in ids}) == len(ids)
    assert all(len(name) <= 100 and re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in ids)


def test_a_trial_holds_the_values_of_its_study_and_survives_json() -> None:
    study = next(study for study in studies(sweep()) if study.method == "l1_filter")
    assert study.ranges == {"methods.l1_filter.keep_ratio": Range("uniform", (0.2, 0.95))}
    trial = study.trial(7, {"methods.l1_filter.keep_ratio": 0.3})
    assert trial.trial_id == "l1_filter-depth4-dropout0.0-s0-007"
    assert (trial.study, trial.cell) == ("l1_filter-depth4-dropout0.0-s0", "depth=4 dropout=0.0")
    assert trial.options["keep_ratio"] == 0.3
    assert (trial.backbone, trial.backbone_options["depth"]) == ("conv", 4)
    assert (trial.training.epochs, trial.training.learning_rate) == (20, 0.2)
    assert (trial.fine_tuning.epochs, trial.fine_tuning.learning_rate) == (5, 0.02)
    assert trial.option("backbone.name") == "conv"
    assert trial.option("training.learning_rate") == 0.2
    assert trial.option("training.distillation.weight") is None
    assert Trial.model_validate_json(trial.model_dump_json()) == trial


def test_a_range_in_a_shared_section_is_searched_by_every_study_and_inherited() -> None:
    study = studies(sweep(*ONE_CELL, "training.momentum={uniform: [0.5, 0.9]}"))[0]
    assert study.ranges == {"training.momentum": Range("uniform", (0.5, 0.9))}
    assert study.n_trials == 10
    trial = study.trial(0, {"training.momentum": 0.6})
    assert trial.training.momentum == 0.6
    assert trial.fine_tuning.momentum == 0.6


def test_a_trial_wants_a_value_for_each_range() -> None:
    study = studies(sweep(*ONE_CELL))[-1]
    with pytest.raises(ValueError) as error:
        study.trial(0, {"threshold": 1.0})
    assert str(error.value) == (
        "study 'magnitude-s0': expected values for methods.magnitude.threshold, got threshold."
    )


def test_plain_trials_are_those_of_grids_and_values() -> None:
    methods = "methods={dense: {}, vanilla: {keep_ratio: {grid: [0.25, 0.5]}}}"
    trials = make_plan(sweep(*ONE_CELL, methods)).plain_trials()
    assert [trial.trial_id for trial in trials] == [
        "dense-s0-000",
        "vanilla-keep_ratio0.25-s0-000",
        "vanilla-keep_ratio0.5-s0-000",
    ]


def test_plain_trials_refuse_ranges_and_name_them() -> None:
    with pytest.raises(ValueError) as error:
        make_plan(sweep("methods={l1_filter: {keep_ratio: {uniform: [0.2, 0.9]}}}")).plain_trials()
    assert str(error.value) == (
        "expected values and grids only, since nothing searches here; these are ranges: "
        "methods.l1_filter.keep_ratio: uniform 0.2 to 0.9. Give each a value or a grid, in the "
        "file or with --set."
    )


def test_every_cell_and_seed_has_one_dense_network() -> None:
    found = dense_networks(sweep("seeds=[0, 1]", "fine_tuning.epochs={grid: [3, 4]}"))
    assert len(found) == 12
    assert len({network.model_dump_json() for network in found}) == 12


def test_a_network_is_known_beforehand_where_only_a_grid_decides_its_options() -> None:
    width = "backbone.width={choice: [0.25], when: {depth: 8}, otherwise: 0.5}"
    found = dense_networks(sweep("backbone.depth={grid: [4, 8]}", "backbone.dropout=0.0", width))
    assert [(n.backbone_options["depth"], n.backbone_options["width"]) for n in found] == [
        (4, 0.5),
        (8, 0.25),
    ]


def test_a_teacher_comes_before_its_students_and_has_none_itself() -> None:
    taught = sweep("backbone.dropout=0.0", "training." + TEACHER)
    assert networks(taught) == [(8, None), (4, 8), (6, 8)]
    own_teacher = dense_networks(taught)[0]
    assert own_teacher.training.distillation is None


def test_the_teacher_of_the_fine_tuning_is_trained_too() -> None:
    taught = sweep(*ONE_CELL, "fine_tuning." + TEACHER)
    assert networks(taught) == [(4, None), (8, None)]
    trial = studies(taught)[0].trial(0, {})
    assert [dense_network(trial), fine_tuning_teacher(trial)] == dense_networks(taught)


def test_one_sweep_has_every_method_with_distillation_and_without() -> None:
    both = "fine_tuning.distillation={grid: [null, {teacher: {}}]}"
    methods = "methods={dense: {}, vanilla: {}, rnp: {}}"
    compared = make_plan(sweep(*ONE_CELL, methods, both))
    taught: dict[str, list[bool]] = {}
    for trial in compared.plain_trials():
        teacher = fine_tuning_teacher(trial)
        assert teacher in (None, dense_network(trial)), "all have the same one"
        taught.setdefault(trial.method, []).append(teacher is not None)
    assert taught == {name: [False, True] for name in ("dense", "vanilla", "rnp")}
    assert len(compared.dense_networks) == 1


def test_dense_networks_of_searched_options_are_known_only_with_their_trial() -> None:
    searched = sweep(*ONE_CELL, "backbone.width={uniform: [0.5, 1]}")
    assert dense_networks(searched) == []
    trial = studies(searched)[0].trial(0, {"backbone.width": 0.7})
    assert dense_network(trial).backbone_options["width"] == 0.7


def test_a_dense_network_is_told_apart_by_data_and_teacher() -> None:
    alone, taught = (
        dense_network(studies(sweep(*ONE_CELL, *more))[0].trial(0, {}))
        for more in ([], ["training." + TEACHER])
    )
    assert alone.spec("data 1") != alone.spec("data 2")
    assert alone.spec("data")["teacher"] is None
    assert taught.teacher is not None
    assert taught.spec("data")["teacher"] == taught.teacher.spec("data")


def test_a_plan_finds_studies_by_their_names() -> None:
    plan = make_plan(sweep(*ONE_CELL))
    assert [*plan.by_name] == [study.name for study in plan.studies]
    assert plan.by_name["l1_filter-s0"].trial_id(7) == "l1_filter-s0-007"


def test_a_plan_counts_no_point_of_a_grid_twice() -> None:
    rounds = "methods={dense: {}, magnitude: {rounds: {choice: [1, 2]}}}"
    assert make_plan(sweep(*ONE_CELL, rounds)).n_trials == 11
    assert make_plan(sweep(*ONE_CELL, rounds, "search.sampler=grid")).n_trials == 3
    assert make_plan(sweep(*ONE_CELL, rounds, "search={hours: 1}")).n_trials == math.inf


def test_a_plan_names_every_split_once() -> None:
    data = "data.train_images={grid: [100, 200]}"
    plan = make_plan(sweep(data, "seeds=[0, 2]", "confirm={seeds: 1}"))
    found = [(options.train_images, seed) for options, seed in plan.splits]
    assert sorted(found) == [(images, seed) for images in (100, 200) for seed in (0, 1, 2)]


def test_a_worker_finds_a_trials_networks_without_the_sweep_files_checker() -> None:
    trial = studies(sweep(*ONE_CELL, "training." + TEACHER))[0].trial(0, {})
    code = (
        "import sys; from orchestrator.plan import Trial, networks_of; "
        "networks = networks_of(Trial.model_validate_json(sys.argv[1])); "
        "assert [n.backbone_options['depth'] for n in networks] == [8, 4, 8]; "
        "assert not {'validation', 'sections'} & {m.rpartition('.')[2] for m in sys.modules "
        "if m.startswith('orchestrator.')}"
    )
    command = [sys.executable, "-c", code, trial.model_dump_json()]
    project = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_options_that_do_not_go_together_in_one_of_many_cells_are_refused() -> None:
    """More than the sweep file's checks try with one another."""
    many = "{grid: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}"
    grids = [f"backbone.{name}={many}" for name in ("dropout", "width")]
    pools = ("backbone.depth={grid: [6, 4]}", "backbone.pool_after={grid: [[4], [6]]}")
    with pytest.raises(SweepFileError, match="pool_after takes different convs from 1 to 4, got"):
        make_plan(sweep(*grids, *pools))
