"""What the README says is tried."""

import re
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml

from orchestrator.search.study_storage import open_journal
from orchestrator.sweep_file import Resources, SweepFileError, load_sweep
from testbed.cost import count_multiplications

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
CLUSTER = (PROJECT / "CLUSTER.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [block for found, block in fences if found == language]


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    for target in targets:
        assert (PROJECT / target).exists(), target


def test_the_clusters_files_are_well_formed(tmp_path: Path) -> None:
    """Whether they do what they say is for a cluster to show; shells and parsers know the rest."""
    for commands in [*blocks("", CLUSTER), *blocks("bash", CLUSTER)]:
        subprocess.run(["bash", "-n"], input=commands, text=True, check=True)
    resources, pods = map(yaml.safe_load, blocks("yaml", CLUSTER))
    assert Resources.model_validate(resources["resources"]).of_ray["memory"] == 6_000_000_000
    head, (workers,) = pods["spec"]["headGroupSpec"], pods["spec"]["workerGroupSpecs"]
    assert workers["template"] == head["template"]
    assert f"ray=={pods['spec']['rayVersion']}\n" in (PROJECT / "constraints.txt").read_text()


def run_quickly(example: str) -> dict[str, Any]:
    """The names that an example of the README leaves behind."""
    quick = example.replace("epochs=15", "epochs=2").replace("epochs=4", "epochs=2")
    quick = quick.replace("RNP(", "RNP(steps=20, ")
    assert quick != example
    names: dict[str, Any] = {}
    exec(quick, names)
    return names


def test_the_example_prunes_a_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = blocks("python")[0]
    assert len([line for line in example.splitlines() if line]) <= 14  # ten lines and the imports
    names = run_quickly(example)
    figures = names["measure"](names["pruned"], names["dense"], names["data"], names["device"])
    share = figures.figures["multiplications"] / figures.figures["dense_multiplications"]
    assert share == pytest.approx(0.4, rel=0.1)
    assert "val_accuracy" in capsys.readouterr().out


def test_the_same_lines_prune_a_network_and_data_of_the_users_own() -> None:
    names = run_quickly("".join(blocks("python")[:2]))
    image = torch.rand(1, 1, 16, 16)
    dense = count_multiplications(names["dense"], image).multiplications
    pruned = count_multiplications(names["pruned"], image).multiplications
    assert pruned / dense == pytest.approx(0.4, rel=0.1)
    assert names["pruned"](torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_the_example_of_rnp_gives_points_of_one_backbone() -> None:
    names = run_quickly(blocks("python")[0] + blocks("python")[2])
    images = torch.rand(2, *names["data"].input_shape)
    assert set(names["others"]) == {-0.02, -0.1, -0.2}
    for network in names["others"].values():
        assert network(images).shape == (2, 10)
        assert torch.equal(network.conv2.weight, names["network"].conv2.weight)


def test_the_example_sweep_is_right(tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(blocks("yaml")[0])
    assert load_sweep(path).search.trials == 10


def test_the_recipe_for_a_pretrained_network_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe,) = blocks("yml")
    (tmp_path / "recipe.yaml").write_text(recipe)
    sweep = load_sweep(tmp_path / "recipe.yaml")
    assert sweep.training["epochs"] == 0 and sweep.backbone["name"] == "torchvision:resnet50"
    monkeypatch.chdir(tmp_path)
    missing = r"no file 'resnet50_on_my_classes\.safetensors'.*"
    with pytest.raises(SweepFileError, match=missing):
        load_sweep(tmp_path / "recipe.yaml", data_root=tmp_path)


def test_the_example_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = (
        "from pydantic import BaseModel, ConfigDict, Field\nfrom torch import nn\n"
        "from baselines.channels.channel_groups import channel_groups\n"
        "from baselines.channels.channel_removal import example_images, remove_channels\n"
        "from testbed.data import Splits\nfrom testbed.method import Run\n"
    )
    (tmp_path / "my_method.py").write_text(imports + blocks("python")[3])
    monkeypatch.syspath_prepend(tmp_path)
    from orchestrator.methods import method_class
    from tests import tiny

    method = method_class("my_method:FirstChannels")(keep=1)
    network = method.prune(tiny.network("conv"), tiny.splits(), tiny.run(1))
    assert network.get_parameter("conv1.weight").shape[0] == 1


@pytest.mark.usefixtures("two_workers", "recipe")
def test_the_searcher_and_the_scheduler_serve_a_sweep_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # for Ray Tune's own results
    example = blocks("python")[4]
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
