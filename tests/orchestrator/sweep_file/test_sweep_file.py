"""The sweep file: what is accepted, and what it means."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_files import MINIMAL, SWEEP

from orchestrator.methods import METHODS
from orchestrator.sweep_file import Resources, Search, Sweep, load_sweep
from orchestrator.sweep_file.grids_and_ranges import Grid, Range

SWEEPS = Path(__file__).parents[3] / "sweeps"


def test_the_shown_sweep_is_read_as_it_is_written() -> None:
    sweep = load_sweep(SWEEPS / "cifar_depth.yaml")
    assert sweep.name == "cifar_depth"
    assert sweep.backbone["depth"] == Grid((4, 6, 8))
    assert sweep.backbone["dropout"] == Grid((0.0, 0.1))
    assert sweep.backbone["pool_after"] == Grid((None, [2, 4]))
    assert sweep.methods["vanilla"]["keep_multiplications"] == Range("uniform", (0.1, 0.9))
    assert sweep.methods["rnp"]["p"] == Range("log_uniform", (-1.0, -0.01))
    assert sweep.early_stopping is not None and sweep.confirm is not None
    assert sweep.varied == ["backbone.depth", "backbone.dropout", "backbone.pool_after"]


def test_the_small_preset_searches_what_the_whole_sweep_does() -> None:
    whole = load_sweep(SWEEPS / "cifar_depth.yaml")
    small = load_sweep(SWEEPS / "cifar_depth.yaml", presets=["small"])
    assert small.name == "cifar_depth_small"
    assert small.methods == whole.methods
    assert small.data["train_images"] == 10_000


def test_defaults_are_filled_in(load: Callable[..., Sweep]) -> None:
    sweep = load(MINIMAL)
    assert sweep.name == "my"
    assert sweep.seeds == (0,)
    assert sweep.objectives == {"val_accuracy": "maximize", "multiplications": "minimize"}
    assert sweep.search == Search(sampler="tpe", trials=10, seed=0)
    assert sweep.resources == Resources(cpus=1, gpus=0)
    assert sweep.data["validation_share"] == 0.1
    assert sweep.backbone["hidden"] == 512
    assert sweep.training["batch_size"] == 256


def test_fine_tuning_inherits_what_it_does_not_set(load: Callable[..., Sweep]) -> None:
    text = MINIMAL + "fine_tuning: {learning_rate: 0.02}\n"
    sweep = load(text, "training.batch_size=64", "training.momentum={grid: [0.8, 0.9]}")
    assert sweep.fine_tuning["learning_rate"] == 0.02
    assert sweep.fine_tuning["batch_size"] == 64
    assert sweep.fine_tuning["epochs"] == 3
    assert "momentum" not in sweep.fine_tuning  # it varies with training's, trial by trial


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_dump_of_each_of_our_sweeps_loads_as_an_equal_sweep(path: Path, tmp_path: Path) -> None:
    sweep = load_sweep(path)
    dumped = tmp_path / "another.yaml"
    dumped.write_text(sweep.dump())
    assert load_sweep(dumped) == sweep


def test_a_dump_keeps_grids_ranges_and_text_that_looks_like_numbers(
    load: Callable[..., Sweep],
) -> None:
    sweep = load(
        SWEEP,
        "training.weight_decay={log_uniform: [1e-5, 1e-3]}",
        "fine_tuning.distillation={teacher: {depth: {grid: [6, 8]}}, weight: {uniform: [0, 1]}}",
        "methods.magnitude.masked_update={choice: [true, false]}",
        "data.classes={grid: [all, ['1', '2e5', 'yes']]}",
    )
    assert load(sweep.dump()) == sweep


def test_null_stands_for_what_is_not_given(load: Callable[..., Sweep]) -> None:
    text = "name:\nsearch:\n" + MINIMAL.replace("dense: {}", "dense: , l1_filter: null")
    sweep = load(text)
    assert sweep.name == "my"
    assert sweep.methods["dense"] == {}
    assert sweep.methods["l1_filter"]["keep_ratio"] == 0.5


def test_numbers_are_read_as_yaml_1_2_has_them(load: Callable[..., Sweep]) -> None:
    sweep = load(MINIMAL, "training.learning_rate=1e-3", "training.batch_size=1_000")
    assert sweep.training["learning_rate"] == 1e-3
    assert sweep.training["batch_size"] == 1000


def test_anchors_and_merges_are_followed(load: Callable[..., Sweep]) -> None:
    text = MINIMAL.replace("training: {", "training: &all {learning_rate: 0.3, ")
    sweep = load(text + "fine_tuning: {<<: *all, epochs: 1}\n")
    assert sweep.fine_tuning["learning_rate"] == 0.3
    assert sweep.fine_tuning["epochs"] == 1


def test_classes_may_be_named_by_numbers(load: Callable[..., Sweep]) -> None:
    assert load(MINIMAL, "data.classes=[3, 5]").data["classes"] == ["3", "5"]


def test_set_changes_values_and_makes_the_mappings_around_them(load: Callable[..., Sweep]) -> None:
    sweep = load(
        MINIMAL,
        "name=other",
        "backbone.depth={grid: [4]}",
        "methods.l1_filter.keep_ratio=0.3",
        "fine_tuning.epochs=1",
        "fine_tuning.epochs=2",
    )
    assert sweep.name == "other"
    assert sweep.backbone["depth"] == Grid((4,))
    assert sweep.methods["l1_filter"]["keep_ratio"] == 0.3
    assert sweep.fine_tuning["epochs"] == 2


def test_set_mends_a_mistake_in_the_file(load: Callable[..., Sweep]) -> None:
    text = MINIMAL.replace("epochs: 3", "epochs: .nan")
    assert load(text, "training.epochs=1").training["epochs"] == 1


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")))
def test_a_shipped_sweep_has_the_controls_and_says_what_rnp_may_spend(path: Path) -> None:
    sweep = load_sweep(path)
    assert {"dense", "vanilla", "random_channels"} <= set(sweep.methods) <= set(METHODS)
    if rnp := sweep.methods.get("rnp"):
        assert "static_prefix" in sweep.methods
        assert (rnp["p"] is None) != (rnp["keep_multiplications"] is None)
