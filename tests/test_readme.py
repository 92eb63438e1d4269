"""What the README says is tried; `test_docs` does so for the pages under docs/."""

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sweep_file import SweepFileError, load_sweep

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [block for found, block in fences if found == language]


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    for target in targets:
        assert (PROJECT / target).exists(), target


def test_the_readme_can_be_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 120


def run_quickly(example: str) -> dict[str, Any]:
    """The names that an example leaves behind."""
    quick = example.replace("epochs=15", "epochs=2").replace("epochs=4", "epochs=2")
    quick = quick.replace("RNP(", "RNP(steps=20, ").replace("depth=4)", "depth=4, width=0.5)")
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
