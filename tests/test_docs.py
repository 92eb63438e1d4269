"""What the pages under docs/ say is tried; `test_readme` does so for the README."""

import re
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from pydantic import BaseModel, Field

from baselines import L1Filter
from docs import generated
from orchestrator.methods import METHODS
from orchestrator.search.study_storage import open_journal
from orchestrator.sweep_file import Resources, load_sweep
from testbed.backbones import build_backbone
from testbed.cost import count_multiplications
from testbed.data import load_splits
from testbed.method import Run
from testbed.network_file import save_network
from testbed.training import Training
from tests.test_readme import PROJECT, blocks, run_quickly

PAGES = sorted((PROJECT / "docs").rglob("*.md"))
RESULTS = sorted((PROJECT / "results").glob("**/README.md"))


def page(name: str) -> str:
    return (PROJECT / "docs" / f"{name}.md").read_text()


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=lambda path: path.parent.name + path.stem)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#\s]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_index_of_results_names_every_page_and_is_short() -> None:
    index, *pages = RESULTS
    text = index.read_text()
    assert len(text.splitlines()) <= 120
    assert all(f"({page.parent.name}/README.md)" in text for page in pages)


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r": ([\w/]+\.md)$", (PROJECT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(str(path.relative_to(PROJECT / "docs")) for path in PAGES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_generated_parts_of_a_page_can_be_drawn(path: Path) -> None:
    drawn = generated.on_page_markdown(path.read_text())
    assert not re.search(r"^:::", drawn, re.MULTILINE)


def test_a_table_of_options_says_what_each_takes_and_what_it_is_unless_given() -> None:
    class Options(BaseModel):
        share: float = Field(gt=0, le=1, description="Of the channels | kept.")
        rounds: int | None = Field(default=None, ge=1)
        is_last: bool = True

    assert generated.options_table(Options).splitlines()[2:] == [
        "| `share` | number > 0, ≤ 1 | required | Of the channels \\| kept. |",
        "| `rounds` | whole number ≥ 1 |  |  |",
        "| `is_last` | true or false | `true` |  |",
    ]


@pytest.mark.parametrize("name", ["methods", "sweep_file"])
def test_every_option_says_what_it_does(name: str) -> None:
    rows = re.findall(r"^\| `.*$", generated.on_page_markdown(page(f"reference/{name}")), re.M)
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_reference_has_every_method_and_every_option_of_the_training() -> None:
    methods = generated.on_page_markdown(page("reference/methods"))
    assert re.findall(r"^## `(\w+)`$", methods, re.MULTILINE) == list(METHODS)
    sweep_file = generated.on_page_markdown(page("reference/sweep_file"))
    assert all(f"| `{name}` |" in sweep_file for name in Training.model_fields)


def test_the_clusters_files_are_well_formed() -> None:
    """Whether they do what they say is for a cluster to show; shells and parsers know the rest."""
    cluster = page("guides/cluster")
    for commands in [*blocks("", cluster), *blocks("bash", cluster)]:
        subprocess.run(["bash", "-n"], input=commands, text=True, check=True)
    resources, pods = map(yaml.safe_load, blocks("yaml", cluster))
    assert Resources.model_validate(resources["resources"]).of_ray["memory"] == 6_000_000_000
    head, (workers,) = pods["spec"]["headGroupSpec"], pods["spec"]["workerGroupSpecs"]
    assert workers["template"] == head["template"]
    assert f"ray=={pods['spec']['rayVersion']}\n" in (PROJECT / "constraints.txt").read_text()


def test_the_example_prunes_a_network_and_data_of_the_users_own() -> None:
    names = run_quickly(blocks("python", page("guides/own_network"))[0])
    image = torch.rand(1, 1, 16, 16)
    dense = count_multiplications(names["dense"], image).multiplications
    pruned = count_multiplications(names["pruned"], image).multiplications
    assert pruned / dense == pytest.approx(0.4, rel=0.1)
    assert names["pruned"](torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_an_exported_network_is_loaded_as_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dense = build_backbone("conv", (1, 8, 8), 10, depth=4)
    data = load_splits("digits", Path("data"), seed=0)
    none = Training(epochs=1).model_copy(update={"epochs": 0})
    run = Run(seed=0, device=torch.device("cpu"), training=none, fine_tuning=none)
    pruned = L1Filter(keep_multiplications=0.5).prune(dense, data, run).eval()
    monkeypatch.chdir(tmp_path)
    Path("my_network").mkdir()
    save_network(pruned, Path("my_network/weights.safetensors"))
    names: dict[str, Any] = {}
    exec(blocks("python", page("guides/ship"))[1], names)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(names["network"].eval()(images), pruned(images))


def test_the_example_of_rnp_gives_points_of_one_backbone() -> None:
    names = run_quickly(blocks("python", page("guides/rnp"))[0])
    images = torch.rand(2, *names["data"].input_shape)
    assert set(names["others"]) == {-0.02, -0.1, -0.2}
    for network in names["others"].values():
        assert network(images).shape == (2, 10)
        assert torch.equal(network.conv2.weight, names["network"].conv2.weight)


def test_the_example_sweeps_are_right(tmp_path: Path) -> None:
    whole, conditions, distillation = blocks("yaml", page("guides/sweep_file"))
    path = tmp_path / "example.yaml"
    path.write_text(whole)
    assert load_sweep(path).search.trials == 10
    for section in (conditions, distillation):
        path.write_text(yaml.safe_dump(yaml.safe_load(whole) | yaml.safe_load(section)))
        load_sweep(path)


def test_the_example_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(blocks("python", page("guides/add_method"))[0])
    monkeypatch.syspath_prepend(tmp_path)
    from orchestrator.methods import method_class
    from tests import tiny

    (options,) = map(yaml.safe_load, blocks("yaml", page("guides/add_method")))
    (name,) = options["methods"]
    network = method_class(name)(keep=1).prune(tiny.network("conv"), tiny.splits(), tiny.run(1))
    assert network.get_parameter("conv1.weight").shape[0] == 1


@pytest.mark.usefixtures("two_workers", "recipe")
def test_the_searcher_and_the_scheduler_serve_a_sweep_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # for Ray Tune's own results
    example = blocks("python", page("guides/add_method"))[1]
    names: dict[str, Any] = {}
    sweep = f'"{PROJECT / "sweeps" / "own_network.yaml"}"'
    monkeypatch.chdir(tmp_path)
    exec(example.replace('"sweeps/own_network.yaml"', sweep), names)

    plan, journal = names["plan"], open_journal(tmp_path / "studies.journal")
    told = {
        study.name: optuna.load_study(study_name=study.name, storage=journal)
        for study in plan.studies
    }
    searched = told["l1_filter-s0"].trials
    assert len(names["results"]) == sum(len(study.trials) for study in told.values()) == 12
    assert {trial.state.name for trial in searched} <= {"COMPLETE", "PRUNED"}
    for trial in searched:
        if trial.state.name == "COMPLETE":
            (share,) = trial.params.values()
            assert trial.values == pytest.approx([share**0.5 - 0.5**8, share])
    assert names["Proposals"](plan, journal).ask() is None, "resumed, nothing is left"
