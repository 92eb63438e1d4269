"""A cascade of a sweep's own networks, confirmed on test images and exported."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from baselines.runtime.cascade_network import CascadeNetwork
from orchestrator.analysis.cascade_decision import named_cascade
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.commands.choose import main
from orchestrator.commands.trial import main as trial_main
from orchestrator.deploy.own_cascade import built, confirmed
from orchestrator.deploy.registration import register
from orchestrator.deploy.selection import Choice, choose
from orchestrator.jobs import final_test as final_evaluation
from orchestrator.jobs.dense import drawn
from orchestrator.run_folder.cascade_tests import CascadeTest
from orchestrator.run_folder.logits import read_logits
from testbed.cost import count_multiplications
from testbed.data import DataOptions, Images, load_test_images
from testbed.network_file import load_network
from testbed.prediction import predict
from tests.test_readme import blocks

SWEEP = """
name: cascades
data: {name: digits, validation_share: 0.3}
backbone: {name: conv, depth: 4, width: 0.25}
training: {epochs: 2, batch_size: 64, precision: float32}
fine_tuning: {epochs: 1, learning_rate: 0.01}
methods:
  dense: {}
  l1_filter: {keep_ratio: {grid: [0.4, 0.7]}}
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cascades")
    (folder / "cascades.yaml").write_text(SWEEP)
    assert trial_main([str(folder / "cascades.yaml"), "--output", str(folder / "runs")]) == 0
    return folder / "runs" / "cascades"


@pytest.fixture
def choice(run_folder: Path) -> Choice:
    """Of all three networks, some images of which come to each."""
    result = SweepResult.read(run_folder)
    names = ",".join(result.trials.sort_values("multiplications")["trial_id"])
    found = choose(result, trial_id=names)
    assert found.cascade is not None and found.cascade.reached[2] > 0
    return found


def test_the_network_spends_and_answers_on_validation_images_what_the_analysis_says(
    run_folder: Path, choice: Choice
) -> None:
    result, own = SweepResult.read(run_folder), choice.cascade
    assert own is not None
    network, trials, splits = built(result, own, Path("data"))
    assert [each.trial_id for each in trials] == list(own.networks)
    assert network.weights.tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    cost = count_multiplications(network, splits.normalised(splits.validation))
    n = len(splits.validation)
    assert cost.multiplications == pytest.approx(own.multiplications, rel=0.01)
    sums = np.cumsum([result.by_id.loc[name, "multiplications"] for name in own.networks])
    assert set(cost.per_image.tolist()) <= set(sums.tolist()), "deciding costs no multiplication"
    device = torch.device("cpu")
    answers = predict(network, splits.validation, splits, device=device, precision="float32")
    kept = [read_logits(run_folder / "logits" / f"{name}.safetensors") for name in own.networks]
    assert all((labels == splits.validation.labels.numpy()).all() for _, labels in kept)
    logs = torch.stack([torch.from_numpy(each).log_softmax(dim=1) for each, _ in kept])
    means = [logs[: looks + 1].mean(dim=0).log_softmax(dim=1) for looks in range(3)]
    off = torch.stack([(answers - each).abs().amax(dim=1) for each in means]).amin(dim=0)
    assert off.max() < 0.01, "each answer is the mean of one, two or three looks"
    right = (answers.argmax(dim=1) == splits.validation.labels).double().mean().item()
    both = (own.accuracy * own.images + own.chosen_by * (n - own.images)) / n
    assert right == pytest.approx(both, abs=0.01)


def test_it_meets_the_test_images_once_and_they_choose_nothing(
    run_folder: Path, choice: Choice, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reads = []
    load = final_evaluation.load_test_images

    def note(*arguments: Any) -> Images:
        reads.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(final_evaluation, "load_test_images", note)
    (run_folder / "cascades.csv").unlink(missing_ok=True)
    final_evaluation._test_images.cache_clear()
    said = []
    for _ in range(2):
        assert main([str(run_folder), "--trial", choice.trial_id, "--data-root", "data"]) == 0
        said.append(capsys.readouterr().out)
        final_evaluation._test_images.cache_clear()
    assert len(reads) == 1 and said[0] == said[1]
    own, result = choice.cascade, SweepResult.read(run_folder)
    assert own is not None
    network, _, splits = built(result, own, Path("data"))
    images = load_test_images(DataOptions(name="digits"), Path("data"))
    device = torch.device("cpu")
    answers = predict(network, images, splits, device=device, precision="float32")
    test = CascadeTest.read(run_folder, own.networks, own.thresholds, own.alone)
    assert test is not None and test.images == len(images)
    right = (answers.argmax(dim=1) == images.labels).double().mean().item()
    assert test.accuracy == right
    assert test.alone_accuracy == result.by_id.loc[own.alone, "test_accuracy"]
    assert test.ahead == pytest.approx(100 * (test.accuracy - test.alone_accuracy))
    cost = count_multiplications(network, splits.normalised(images))
    assert test.multiplications == cost.multiplications
    assert f"On {len(images)} test images: accuracy {right:.3f} with " in said[0]
    assert f"against {test.alone_accuracy:.3f} with " in said[0]
    # Whatever the test says, the same cascade is named.
    worst = test._replace(accuracy=0.0, ahead=-90.0)
    (run_folder / "cascades.csv").unlink()
    worst.write(run_folder, own.networks, own.thresholds, own.alone)
    again = confirmed(result, choose(result, trial_id=choice.trial_id), Path("data"))
    assert again.cascade == own and "90.0 points behind" in str(again.test)
    (run_folder / "cascades.csv").unlink()


def test_what_was_tested_is_read_as_it_was_written(tmp_path: Path) -> None:
    first = CascadeTest(0.1 + 0.2, 12345.678, 0.25, 2e6, 5.0, 1 / 3, 10_000)
    first.write(tmp_path, ["a", "b"], [0.1 + 0.2], "a")
    second = first._replace(accuracy=0.5)
    second.write(tmp_path, ["a", "b"], [float("inf")], "a")
    assert CascadeTest.read(tmp_path, ["a", "b"], [0.1 + 0.2], "a") == first
    assert CascadeTest.read(tmp_path, ["a", "b"], [float("inf")], "a") == second
    assert CascadeTest.read(tmp_path, ["b", "a"], [0.1 + 0.2], "a") is None
    assert CascadeTest.read(tmp_path, ["a", "b"], [0.3], "a") is None
    assert CascadeTest.read(tmp_path, ["a", "b"], [0.1 + 0.2], "b") is None
    assert list(pd.read_csv(tmp_path / "cascades.csv")["images"]) == [10_000, 10_000]


def test_every_format_gives_what_the_cascade_gives_and_the_card_names_its_networks(
    run_folder: Path, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    result, own, target = SweepResult.read(run_folder), choice.cascade, tmp_path / "shipped"
    assert own is not None
    arguments = [str(run_folder), "--trial", choice.trial_id, "--export", str(target)]
    assert main([*arguments, "--data-root", "data"]) == 0
    capsys.readouterr()
    network, trials, splits = built(result, own, Path("data"))
    pixels = splits.validation.pixels.float() / 255
    with torch.no_grad():
        expected = network(splits.normalised(splits.validation)[:]).numpy()
    for name, size in (("model.onnx", 1), ("model_batch.onnx", 64)):
        session = onnxruntime.InferenceSession(str(target / name))
        batches = [each.numpy() for each in pixels.split(size)]
        found = np.concatenate([session.run(["logits"], {"images": each})[0] for each in batches])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    dense = drawn(trials[0], splits)
    whole = CascadeNetwork([copy.deepcopy(dense) for _ in trials])
    loaded = load_network(target / "weights.safetensors", whole).eval()
    with torch.no_grad():
        again = loaded(splits.normalised(splits.validation)[:]).numpy()
    np.testing.assert_array_equal(again, expected)
    card = (target / "README.md").read_text()
    for name, threshold in zip(own.networks, [*own.thresholds, None], strict=True):
        row = next(line for line in card.splitlines() if f"| {name} |" in line)
        assert threshold is None or f"| {threshold:.4f} |" in row
        assert result.command(result.by_id.loc[name]) in card
    test = CascadeTest.read(run_folder, own.networks, own.thresholds, own.alone)
    assert test is not None and str(test) in card
    assert re.search(r"it skips\. One image: .* times the dense network's", card)
    assert "\n\n\n" not in card
    torch_lines, onnx_lines = blocks("python", card)
    monkeypatch.chdir(target)
    names: dict[str, Any] = {"images": pixels}
    exec(torch_lines, names)
    np.testing.assert_allclose(names["logits"].detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    names = {"images": pixels[:1].numpy()}
    exec(onnx_lines, names)
    np.testing.assert_allclose(names["logits"], expected[:1], rtol=1e-3, atol=1e-3)


def test_a_registered_cascade_has_its_own_figures(
    run_folder: Path, choice: Choice, tmp_path: Path
) -> None:
    class Registry:
        def register(
            self, exported: Path, program: Path, tags: dict[str, Any], description: str
        ) -> str:
            self.program, self.tags, self.description = program, tags, description
            return "1"

    result, models = SweepResult.read(run_folder), Registry()
    found = confirmed(result, choice, Path("data"))
    own, test = found.cascade, found.test
    assert own is not None and test is not None
    register(models, tmp_path, result, found)  # type: ignore[arg-type]
    assert models.program.parent == tmp_path
    assert models.tags["trial_id"] == found.trial_id
    assert models.tags["test_accuracy"] == test.accuracy
    assert models.tags["multiplications"] == own.multiplications
    assert models.tags["sweep"] == "cascades" and "parameters" not in models.tags
    assert models.description == f"{found.why} {test}"


def test_a_cascade_takes_a_limit_of_multiplications_alone(
    run_folder: Path, choice: Choice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--trial", choice.trial_id]
    for further in (["--max-latency-ms", "5"], ["--min-accuracy", "0.5"], ["--method", "dense"]):
        assert main([str(run_folder), *names, *further]) == 2
        assert "takes --max-multiplications alone" in capsys.readouterr().err
    own = choice.cascade
    assert own is not None
    first = SweepResult.read(run_folder).by_id.loc[own.networks[0], "multiplications"]
    assert main([str(run_folder), *names, "--max-multiplications", str(first / 2)]) == 2
    assert "relax the limit" in capsys.readouterr().err
    limited = named_cascade(SweepResult.read(run_folder), own.networks, own.multiplications - 1)
    assert limited.multiplications < own.multiplications


def test_a_missing_network_file_is_said(
    run_folder: Path, choice: Choice, capsys: pytest.CaptureFixture[str]
) -> None:
    own = choice.cascade
    assert own is not None
    path = run_folder / "networks" / f"{own.networks[0]}.safetensors"
    (run_folder / "cascades.csv").unlink(missing_ok=True)
    path.rename(path.with_suffix(".away"))
    try:
        assert main([str(run_folder), "--trial", choice.trial_id, "--data-root", "data"]) == 2
        assert path.name in capsys.readouterr().err
    finally:
        path.with_suffix(".away").rename(path)
