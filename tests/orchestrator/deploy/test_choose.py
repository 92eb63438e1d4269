"""The network that a sweep ends with: its exports are that network."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.commands.choose import main
from orchestrator.commands.trial import main as trial_main
from orchestrator.deploy.selection import choose
from orchestrator.plan import make_plan
from orchestrator.run_folder.reader import past_trial
from orchestrator.run_folder.trials_table import read_trials
from orchestrator.sweep_file import load_sweep
from orchestrator.tracking.tracker import Tracker
from testbed.data import Images, load_splits
from tests.test_readme import PROJECT, blocks

SWEEP = """
name: ship
data: {name: digits, train_images: 300, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 2, batch_size: 64}
fine_tuning: {epochs: 1, learning_rate: 0.01}
methods:
  dense: {}
  l1_filter: {keep_ratio: {grid: [0.25, 0.5]}}
  rnp: {p: -0.1, rounds: 1, steps: 20, encoding: 4, hidden: 4}
confirm: {seeds: 1}
"""


# What is written


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a network that decides per image, confirmed."""
    folder = tmp_path_factory.mktemp("ship")
    (folder / "ship.yaml").write_text(SWEEP)
    assert trial_main([str(folder / "ship.yaml"), "--output", str(folder / "runs")]) == 0
    return folder / "runs" / "ship"


def test_a_past_trial_is_the_one_that_was_planned(run_folder: Path) -> None:
    rows = read_trials(run_folder / "trials.csv")
    for trial in make_plan(load_sweep(run_folder / "sweep.yaml")).plain_trials():
        assert past_trial(run_folder, rows, trial.trial_id) == trial
    again = rows[rows["phase"] == "confirmation"].iloc[0]
    found = past_trial(run_folder, rows, again["trial_id"])
    assert (found.seed, found.confirms) == (1, again["confirms"])
    with pytest.raises(ValueError, match="has no trial 'x'"):
        past_trial(run_folder, rows, "x")


@pytest.fixture(scope="module")
def shipped(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of each of two methods."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from orchestrator.deploy.export import export

    target, result = tmp_path_factory.mktemp("shipped"), SweepResult.read(run_folder)
    for method in ("l1_filter", "rnp"):
        export(result, choose(result, method=method), target / method, Path("data"))
    return target


@pytest.mark.parametrize("method", ["l1_filter", "rnp"])
def test_every_format_gives_the_networks_logits(
    run_folder: Path, shipped: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    target = shipped / method
    rows = read_trials(run_folder / "trials.csv")
    card = (target / "README.md").read_text()
    (row,) = [r for _, r in rows.iterrows() if f"`{r['trial_id']}`" in card]
    assert row["method"] == method and row["phase"] == "confirmation"
    trial = past_trial(run_folder, rows, row["trial_id"])
    splits = load_splits(trial.data, Path("data"), trial.seed)
    images = splits.validation.pixels.float() / 255
    session = onnxruntime.InferenceSession(str(target / "model.onnx"))
    batches = images.split(1 if method == "rnp" else 7)
    logits = np.concatenate([session.run(["logits"], {"images": b.numpy()})[0] for b in batches])
    right = torch.from_numpy(logits).argmax(dim=1) == splits.validation.labels
    assert right.double().mean().item() == pytest.approx(row["val_accuracy"], abs=0.02)
    Image.fromarray(splits.validation.pixels[0, 0].numpy()).save(tmp_path / "image.png")
    guide = (PROJECT / "docs" / "guides" / "ship.md").read_text()
    readme = next(block for block in blocks("python", guide) if "onnxruntime" in block)
    said = subprocess.run(
        [sys.executable, "-c", readme.replace("my_network", str(target))],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert int(said) == logits[0].argmax()
    torch_lines, onnx_lines = blocks("python", card)
    monkeypatch.chdir(target)
    names: dict[str, Any] = {"images": images}
    exec(torch_lines, names)
    np.testing.assert_allclose(names["logits"].detach().numpy(), logits, rtol=1e-2, atol=1e-2)
    names = {"images": images[:1].numpy()}
    exec(onnx_lines, names)
    np.testing.assert_allclose(names["logits"], logits[:1], rtol=1e-5, atol=1e-5)
    assert ("a NumPy array of one image" in card) == (method == "rnp")
    assert (target / "weights.safetensors").exists()
    assert ("it skips." in card) == (method == "rnp")
    assert ("it skips nothing" in card) == (method == "rnp")
    assert re.search(r"\d\.\d\d times the dense", card)
    assert "ONNX Runtime, one thread" in card and "MIT" in card
    assert not math.isnan(row["test_accuracy"]) and "test accuracy" in card


def test_a_format_that_gives_other_logits_is_refused() -> None:
    from orchestrator.deploy.programs import _check

    expected = np.zeros((2, 3), dtype=np.float32)
    _check("model.onnx", lambda _: expected + 1e-4, torch.zeros(2, 1), expected)
    for wrong in (0.01, math.nan):
        with pytest.raises(ValueError, match=r"model\.onnx gives other logits"):
            _check("model.onnx", lambda _, w=wrong: expected + w, torch.zeros(2, 1), expected)


class Viewed(nn.Module):
    """Flattens by `.view`, which images that lie channels last in memory do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.conv(images).view(images.shape[0], -1))
        return logits


def test_a_network_that_flattens_by_view_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from orchestrator.deploy.programs import write_programs

    data = tiny.splits()
    pixels = data.validation.pixels.contiguous(memory_format=torch.channels_last)
    images = Images(pixels, data.validation.labels)
    data = dataclasses.replace(data, validation=images)
    (said, _) = write_programs(Viewed().eval(), Viewed().eval(), data, tmp_path)
    assert re.search(
        r"one image in .* ms, \d\.\d\d times the dense network's; a batch of 128", said
    )
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.pt2"}


@pytest.mark.parametrize("exporter", ["torch.onnx.export", "torch.export.export"])
def test_an_operation_that_no_exporter_takes_is_said_and_leaves_no_folder(
    exporter: str,
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

    def refuse(*args: Any, **named: Any) -> None:
        try:
            raise LookupError("No function found for aten.strange_pool.\nSee the stack trace.")
        except LookupError as error:
            raise RuntimeError("Failed to convert.\n" * 100) from error

    monkeypatch.setattr(exporter, refuse)
    target = tmp_path / "new" / "shipped"
    export = ["--export", str(target), "--data-root", "data"]
    assert main([str(run_folder), "--max-multiplications", "1e9", *export]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in said and "No function found for aten.strange_pool)" in said
    assert list(target.parent.iterdir()) == []


def test_nothing_is_overwritten_and_no_run_folder_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--export", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_weights_are_read_with_weights_only_everywhere() -> None:
    """Torch reads nothing but weights, and pickle only errors that Ray Tune keeps of a worker."""
    for room in ("orchestrator", "rnp", "baselines", "testbed"):
        for path in (PROJECT / room).rglob("*.py"):
            text = path.read_text()
            for call in re.findall(r"torch(?:\.serialization)?\.load\(.*\)", text):
                assert "weights_only=True" in call, path
            if path.name != "job_callback.py":  # in the run's own temporary folder
                assert "import pickle" not in text and "cloudpickle" not in text, path


# What is registered


@pytest.fixture(scope="module")
def tracked(run_folder: Path) -> str:
    """The same sweep's runs in a local MLflow: its URI."""
    plan = make_plan(load_sweep(run_folder / "sweep.yaml"))
    rows = read_trials(run_folder / "trials.csv").to_dict("records")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        Tracker(plan, run_folder, said.append, rows).close()
    assert said == []
    return f"sqlite:///{run_folder.parent / 'mlflow.db'}"


def test_what_is_registered_twice_is_two_versions_that_give_the_networks_logits(
    run_folder: Path,
    tracked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    import mlflow
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for number in (1, 2):
        export = ["--export", str(tmp_path / f"shipped-{number}")]
        assert main([str(run_folder), *export, "--register", "digits small"]) == 0
        *_, model, address, load = capsys.readouterr().out.splitlines()
        assert model == f"models:/digits small/{number}"
        assert f'mlflow.set_tracking_uri("{tracked}")' in address and model in load
    client = MlflowClient(tracked)
    assert len(client.search_model_versions("name = 'digits small'")) == 2
    version = client.get_model_version("digits small", "1")
    run = client.get_run(version.run_id)
    rows = read_trials(run_folder / "trials.csv").set_index("trial_id")
    row = rows.loc[run.data.tags["trial_id"]]
    assert version.tags["trial_id"] == run.info.run_name == row.name
    assert float(version.tags["val_accuracy"]) == row["val_accuracy"]
    assert float(version.tags["multiplications"]) == row["multiplications"]
    assert "the most accurate within" in version.description

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked)
    model = mlflow.pyfunc.load_model("models:/digits small/1")
    held = Path(mlflow.artifacts.download_artifacts("models:/digits small/1"))
    exported = tmp_path / "shipped-1"
    for path in exported.iterdir():
        assert (held / path.name).read_bytes() == path.read_bytes()
    trial = past_trial(run_folder, rows.reset_index(), str(row.name))
    splits = load_splits(trial.data, Path("data"), trial.seed)
    images = (splits.validation.pixels.float() / 255).numpy()
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    logits = np.concatenate([model.predict(image[None])["logits"] for image in images])
    (one,) = session.run(["logits"], {"images": images[:1]})
    np.testing.assert_array_equal(logits[:1], one)
    right = logits.argmax(axis=1) == splits.validation.labels.numpy()
    assert right.mean() == pytest.approx(row["val_accuracy"], abs=0.02)


def test_what_cannot_be_registered_is_said_before_anything_is_exported(
    run_folder: Path,
    tracked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusal(*arguments: str) -> str:
        assert main([str(run_folder), *arguments]) == 2
        assert not target.exists()
        return capsys.readouterr().err

    target = tmp_path / "shipped"
    export = ["--export", str(target)]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "give both" in refusal("--register", "a")
    for name in ("", "a/b", "a:b", ".."):
        assert "expected a name without '/' and ':'" in refusal(*export, "--register", name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    assert "none.db is missing" in refusal(*export, "--register", "a")
    assert not (tmp_path / "none.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    assert "MLflow at http://127.0.0.1:9 does not answer" in refusal(*export, "--register", "a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked)
    (run_folder / "sweep_id").rename(tmp_path / "sweep_id")  # another sweep of that name
    try:
        assert "has no run of" in refusal(*export, "--register", "a")
    finally:
        (tmp_path / "sweep_id").rename(run_folder / "sweep_id")
