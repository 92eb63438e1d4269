"""Ranges that are searched only where other options have certain values."""

import itertools
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import InMemoryStorage

from orchestrator.plan import Trial, dense_networks, make_plan, n_tries, networks_of, studies
from orchestrator.search.proposer import Proposer
from orchestrator.sweep_file import Sweep, SweepFileError, load_sweep
from orchestrator.sweep_file.grids_and_ranges import find_variables

SECTIONS = """
data: {name: digits}
backbone: {name: conv, depth: 4}
training: {epochs: 2, learning_rate: 0.1}
"""


def sweep(folder: Path, text: str, *overrides: str) -> Sweep:
    path = folder / "my.yaml"
    path.write_text(SECTIONS + text)
    return load_sweep(path, overrides)


def refused(folder: Path, text: str) -> list[str]:
    with pytest.raises(SweepFileError) as caught:
        sweep(folder, text)
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


def trials(planned: Sweep) -> list[Trial]:
    proposer = Proposer(
        studies(planned), planned.objectives, planned.search, storage := InMemoryStorage()
    )
    found = []
    for number, trial in enumerate(iter(proposer.ask, None)):
        found.append(trial)
        row = {"status": "completed", "val_accuracy": number % 7, "multiplications": number % 5}
        proposer.tell(trial.trial_id, row)
    assert optuna.get_all_study_names(storage)
    return found


SCOPE = """
fine_tuning: {epochs: 1}
methods:
  magnitude:
    threshold: {uniform: [0.5, 3.0], when: {scope: layer}, otherwise: 1.5}
    scope: {choice: [global, layer]}
search: {trials: 24, sampler: SAMPLER}
"""


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_a_range_is_searched_where_its_condition_holds(sampler: str, tmp_path: Path) -> None:
    """Also where it is written before the option that it depends on."""
    found = trials(sweep(tmp_path, SCOPE.replace("SAMPLER", sampler)))

    thresholds = {
        scope: [t.options["threshold"] for t in found if t.options["scope"] == scope]
        for scope in ("global", "layer")
    }
    assert set(thresholds["global"]) == {1.5}
    assert len(set(thresholds["layer"])) == len(thresholds["layer"]) >= 4
    assert all(0.5 <= value <= 3.0 for value in thresholds["layer"])


def test_a_grid_has_no_point_twice_and_as_many_as_are_asked_for(tmp_path: Path) -> None:
    planned = sweep(tmp_path, SCOPE.replace("SAMPLER", "grid"))

    found = trials(planned)
    points = {(t.options["scope"], t.options["threshold"]) for t in found}
    assert len(found) == len(points) == n_tries(studies(planned)[0], planned.search) == 24
    assert sum(scope == "global" for scope, _ in points) == 1


def test_what_is_not_searched_and_has_no_otherwise_is_the_default(tmp_path: Path) -> None:
    text = SCOPE.replace(", otherwise: 1.5", "").replace("SAMPLER", "random")

    not_searched = [t for t in trials(sweep(tmp_path, text)) if t.options["scope"] == "global"]
    assert not_searched
    assert all("threshold" not in trial.options for trial in not_searched)


def test_what_fine_tuning_does_not_search_it_takes_from_training(tmp_path: Path) -> None:
    text = """
fine_tuning:
  epochs: 1
  schedule: {choice: [one_cycle, cosine]}
  learning_rate: {uniform: [0.01, 0.02], when: {schedule: cosine}}
methods: {l1_filter: {}}
search: {sampler: random}
"""
    rates = {
        schedule: [
            t.fine_tuning.learning_rate
            for t in trials(sweep(tmp_path, text))
            if t.fine_tuning.schedule == schedule
        ]
        for schedule in ("one_cycle", "cosine")
    }
    assert set(rates["one_cycle"]) == {0.1}
    assert all(0.01 <= rate <= 0.02 for rate in rates["cosine"])


METHODS = """
fine_tuning:
  epochs: 1
  learning_rate: {uniform: [0.01, 0.02], when: {method: [l1_filter, thinet]}, otherwise: 0.05}
methods: {l1_filter: {}, magnitude: {}, thinet: {}}
search: {trials: 3, sampler: random}
"""


def test_a_shared_option_may_depend_on_the_method(tmp_path: Path) -> None:
    planned = sweep(tmp_path, METHODS)

    found = trials(planned)
    counts = {study.method: n_tries(study, planned.search) for study in studies(planned)}
    rates = {t.method: t.fine_tuning.learning_rate for t in found}
    assert counts == {"l1_filter": 3, "magnitude": 1, "thinet": 3}, "nothing is searched there"
    assert len(found) == 7
    assert rates["magnitude"] == 0.05
    assert all(0.01 <= rates[method] <= 0.02 for method in ("l1_filter", "thinet"))


def test_a_range_may_depend_on_a_grid_of_another_section(tmp_path: Path) -> None:
    text = """
fine_tuning: {epochs: 1}
methods:
  l1_filter: {keep_ratio: {uniform: [0.2, 0.9], when: {backbone.depth: 6}, otherwise: 0.5}}
search: {trials: 5, sampler: random}
"""
    planned = sweep(tmp_path, text, "backbone.depth={grid: [4, 6]}")

    kept = {t.backbone_options["depth"]: t.options["keep_ratio"] for t in trials(planned)}
    by_depth = {study.cell: study.n_trials for study in studies(planned)}
    assert by_depth == {"depth=4": 1, "depth=6": 5}
    assert kept[4] == 0.5
    assert kept[6] != 0.5


ONE_VALUE = """
fine_tuning: {epochs: 1}
methods:
  magnitude: {threshold: {grid: [1.0, 2.0]}, scope: {choice: [layer], when: {threshold: 2.0}}}
search: {trials: 5}
"""


def test_an_option_may_have_one_value_where_a_grid_has_another(tmp_path: Path) -> None:
    planned = sweep(tmp_path, ONE_VALUE)

    for found in (trials(planned), make_plan(planned).plain_trials()):
        scopes = [(t.options["threshold"], t.options.get("scope", "default")) for t in found]
        assert scopes == [(1.0, "default"), (2.0, "layer")], "nothing is searched"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_an_option_may_have_one_value_where_a_searched_one_has_another(
    sampler: str, tmp_path: Path
) -> None:
    searched = ONE_VALUE.replace("grid: [1.0, 2.0]", "choice: [1.0, 2.0]")
    searched = searched.replace("trials: 5", f"trials: 24, sampler: {sampler}")
    found = {
        (t.options["threshold"], t.options.get("scope", "default"))
        for t in trials(sweep(tmp_path, searched))
    }
    assert found == {(1.0, "default"), (2.0, "layer")}


def test_what_is_distilled_may_depend_on_the_method(tmp_path: Path) -> None:
    text = """
fine_tuning:
  epochs: 1
  distillation: {choice: [null], when: {method: vanilla}, otherwise: {teacher: {depth: 8}}}
methods: {l1_filter: {}, vanilla: {}}
"""
    planned = sweep(tmp_path, text)
    assert len(dense_networks(planned)) == 1, "the teacher is trained where a trial needs it"
    taught = {t.method: len(networks_of(t)) for t in trials(planned)}
    assert taught == {"l1_filter": 2, "vanilla": 1}
    without = text.replace(", otherwise: {teacher: {depth: 8}}", "")
    assert {len(networks_of(t)) for t in trials(sweep(tmp_path, without))} == {1}


def test_conditions_may_follow_from_one_another(tmp_path: Path) -> None:
    text = """
fine_tuning: {epochs: 2}
methods:
  l1_filter:
    keep_ratio: {uniform: [0.2, 0.9], when: {rounds: 2}, otherwise: 0.5}
    rounds: {int: [1, 2], when: {fine_tuning.schedule: cosine}, otherwise: 1}
search: {trials: 40, sampler: random}
"""
    planned = sweep(tmp_path, text, "fine_tuning.schedule={choice: [one_cycle, cosine]}")

    seen = {
        (t.fine_tuning.schedule, t.options["rounds"], t.options["keep_ratio"] == 0.5)
        for t in trials(planned)
    }
    assert seen == {("one_cycle", 1, True), ("cosine", 1, True), ("cosine", 2, False)}


def test_a_sweep_with_conditions_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for text, sampler in itertools.product((SCOPE, METHODS, ONE_VALUE), ("grid", "tpe")):
        planned = sweep(tmp_path, text.replace("SAMPLER", sampler))
        path = tmp_path / "resolved.yaml"
        path.write_text(planned.dump())
        assert load_sweep(path) == planned


def test_only_what_can_come_together_is_checked(tmp_path: Path) -> None:
    """Both keep options are refused, but here they never meet."""
    text = """
fine_tuning: {epochs: 1}
methods:
  l1_filter:
    keep_ratio: {choice: [null, 0.5]}
    keep_multiplications: {uniform: [0.2, 0.8], when: {keep_ratio: null}}
search: {sampler: random}
"""
    for trial in trials(sweep(tmp_path, text)):
        given = [name for name, value in trial.options.items() if name[:5] == "keep_" and value]
        assert len(given) == 1

    together = text.replace("keep_ratio: null", "keep_ratio: 0.5")
    assert any("not both" in problem for problem in refused(tmp_path, together))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "threshold: {uniform: [1, 2], when: {scope: layers}}",
            "methods.magnitude.threshold: when scope: it is never layers, but choice of global, "
            "layer.",
        ),
        (
            "threshold: {uniform: [1, 2], when: {scop: layer}}",
            "methods.magnitude.threshold: when scop: there is no option methods.magnitude.scop, or "
            "it is not set.",
        ),
        (
            "threshold: {uniform: [1, 2], when: {method: magnitud}}",
            "methods.magnitude.threshold: when method: unknown method 'magnitud'. Did you mean "
            "'magnitude'? Known: ",
        ),
        (
            "threshold: {uniform: [1, 2], when: {method: [[magnitude]]}}",
            "methods.magnitude.threshold: when method: unknown method",
        ),
        (
            "threshold: {uniform: [1, 2], when: {threshold: 1.0}}",
            "methods.magnitude.threshold: its condition depends on itself.",
        ),
        (
            "rounds: {int: [1, 2], when: {fine_tuning.learning_rate: 1.0}}",
            "methods.magnitude.rounds: when fine_tuning.learning_rate: it is uniform 0.01 to 0.02, "
            "of which no single value can be waited for. Use a choice or int.",
        ),
        (
            "threshold: {uniform: [1, 2], when: {fine_tuning.rate: 1.0}}",
            "methods.magnitude.threshold: when fine_tuning.rate: there is no option "
            "fine_tuning.rate, or it is not set.",
        ),
        (
            "threshold: {uniform: [1, 2], when: {methods.thinet.images: 1}}",
            "methods.magnitude.threshold: when methods.thinet.images: a method's options are known "
            "to itself alone. Write method: and its name.",
        ),
        (
            "threshold: {uniform: [1, 2], otherwise: 1}",
            "methods.magnitude.threshold: otherwise needs a condition, as in when: {option: "
            "value}.",
        ),
        (
            "threshold: {uniform: [1, 2], when: layer}",
            "methods.magnitude.threshold: when takes options and their values, as in when: "
            "{option: value}.",
        ),
        (
            "threshold: {choice: [1.0]}",
            "methods.magnitude.threshold: a choice takes a list of at least two values, as in "
            "{choice: [a, b]}, or one and a when.",
        ),
        (
            "threshold: {grid: [1, 2], when: {scope: layer}}",
            "methods.magnitude.threshold: grid stands alone, got also when.",
        ),
        (
            "threshold: {uniform: [1, 2], when: {scope: layer}, otherwise: -1}",
            "methods.magnitude.threshold: expected more than 0, got -1.",
        ),
        (
            "rounds: {int: [1, 9], when: {scope: layer}}",
            "rounds of prune and retrain need an epoch each",
        ),
    ],
)
def test_conditions_that_make_no_sense_are_refused_on_their_line(
    line: str, message: str, tmp_path: Path
) -> None:
    text = f"""
fine_tuning: {{epochs: 3, learning_rate: {{uniform: [0.01, 0.02]}}}}
methods:
  magnitude:
    scope: {{choice: [global, layer]}}
    {line}
"""
    problems = refused(tmp_path, text)

    assert len(problems) == 1, problems
    assert problems[0].startswith("my.yaml:10: ")
    assert message in problems[0]


def test_a_circle_of_conditions_is_refused(tmp_path: Path) -> None:
    text = """
fine_tuning:
  epochs: 1
  schedule: {choice: [one_cycle, cosine], when: {batch_size: 8}, otherwise: cosine}
  batch_size: {int: [8, 9], when: {schedule: cosine}, otherwise: 8}
methods: {l1_filter: {}}
"""
    assert refused(tmp_path, text) == [
        "my.yaml:8: fine_tuning.schedule: its condition depends on itself.",
        "my.yaml:9: fine_tuning.batch_size: its condition depends on itself.",
    ]


def test_grids_and_ranges_are_found_in_a_written_sweep(tmp_path: Path) -> None:
    """With their conditions or without, at any depth."""
    text = SCOPE.replace("SAMPLER", "tpe")
    teacher = "training.distillation={teacher: {depth: {grid: [6, 8]}}}"
    written = yaml.safe_load(sweep(tmp_path, text, teacher).dump())
    found = find_variables({"training": written["training"], "methods": written["methods"]})
    assert {".".join(key): str(variable) for key, variable in found.items()} == {
        "training.distillation.teacher.depth": "6, 8",
        "methods.magnitude.threshold": "uniform 0.5 to 3.0 where scope is layer",
        "methods.magnitude.scope": "choice of global, layer",
    }
