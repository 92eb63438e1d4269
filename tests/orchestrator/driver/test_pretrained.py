"""Sweeps of a pretrained network: its weights from a file, no dense training."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.commands.choose import main as choose_main
from orchestrator.commands.sweep import main as sweep_main
from orchestrator.commands.trial import main as trial_main
from orchestrator.run_folder.trials_table import read_trials
from testbed.backbones import build_backbone
from testbed.data import DataOptions, load_splits
from testbed.training import Training, evaluate, train

CPU = torch.device("cpu")
DATA = "{name: digits, train_images: 300, validation_share: 0.3}"
SWEEP = f"""
name: pretrained
data: {DATA}
backbone: {{name: conv, depth: 4, width: 0.25, weights: WEIGHTS}}
training: {{epochs: 0, batch_size: 64}}
fine_tuning: {{epochs: 1, learning_rate: 0.01}}
methods:
  dense: {{}}
  vanilla: {{keep_ratio: 0.5}}
  l1_filter: {{keep_multiplications: 0.5}}
  rnp: {{p: -0.05, rounds: 1, adaptation: 0, steps: 20, encoding: 8, hidden: 8}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that is right about most digits."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    data = load_splits(
        DataOptions(name="digits", train_images=300, validation_share=0.3), Path("data"), seed=0
    )
    torch.manual_seed(0)
    network = build_backbone("conv", data.input_shape, data.n_classes, depth=4, width=0.25)
    train(network, data, Training(epochs=12, batch_size=32), seed=0, device=CPU)
    assert evaluate(network, data.validation, data, device=CPU) > 0.8
    save_file(network.state_dict(), path)
    return path


def written(folder: Path, weights: object, rest: str = "") -> Path:
    path = folder / "pretrained.yaml"
    path.write_text(SWEEP.replace("WEIGHTS", str(weights)) + rest)
    return path


@pytest.fixture(scope="module")
def runs(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep has run, and the file of weights is gone since."""
    folder = tmp_path_factory.mktemp("pretrained")
    copied = Path(shutil.copy(weights, folder / "w.safetensors"))
    assert trial_main([str(written(folder, copied)), "--output", str(folder / "runs")]) == 0
    copied.unlink()
    return folder / "runs" / "pretrained"


def test_the_dense_accuracy_is_that_of_the_weights_and_methods_start_from_it(runs: Path) -> None:
    rows = read_trials(runs / "trials.csv").set_index("method")
    assert (rows["status"] == "completed").all()
    assert rows["dense_val_accuracy"].nunique() == 1
    assert rows.loc["dense", "dense_val_accuracy"] > 0.8
    assert rows.loc["dense", "val_accuracy_before_finetuning"] == pytest.approx(
        rows.loc["dense", "dense_val_accuracy"]
    )
    assert rows.loc["dense", "epochs_spent"] == rows.loc["vanilla", "epochs_spent"] == 1
    assert "0.8" in (runs / "report.md").read_text() or "0.9" in (runs / "report.md").read_text()


def test_a_network_is_shipped_without_the_file_that_it_started_from(
    runs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    export = ["--max-multiplications", "1e9", "--export", str(tmp_path / "shipped")]
    assert choose_main([str(runs), *export]) == 0
    assert (tmp_path / "shipped" / "model.onnx").exists()


def test_a_finished_sweep_is_resumed_without_the_file_and_not_with_another(
    runs: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "runs" / "pretrained")
    (tmp_path / "runs" / "pretrained" / "weights.sha256").write_text(f"{'0' * 64}  {weights}\n")
    again = [str(written(tmp_path, weights)), "--output", str(tmp_path / "runs")]
    assert trial_main(again) == 2
    said = capsys.readouterr().err
    assert f"{weights} has other content: sha256 000000000000, and now " in said
    assert "--fresh" in said


@pytest.mark.usefixtures("no_report")
def test_what_the_folder_notes_is_what_sha256sum_checks(weights: Path, tmp_path: Path) -> None:
    import hashlib

    sweep = written(tmp_path, weights)
    assert trial_main([str(sweep), "--only", "dense", "--output", str(tmp_path / "runs")]) == 0
    noted = (tmp_path / "runs" / "pretrained" / "weights.sha256").read_text()
    assert noted == f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  {weights}\n"


@pytest.mark.usefixtures("no_report")
def test_weights_of_the_same_name_and_other_content_are_another_dense_network(
    weights: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(weights, tmp_path / "w.safetensors"))
    sweep, found = written(tmp_path, file), []
    for name in ("first", "second"):
        run = ["--only", "dense", "--set", f"name={name}", "--output", str(tmp_path / "runs")]
        assert trial_main([str(sweep), *run]) == 0
        found.append(read_trials(tmp_path / "runs" / name / "trials.csv")["dense_val_accuracy"][0])
        network = build_backbone("conv", (1, 8, 8), 10, depth=4, width=0.25)
        save_file(network.state_dict(), file)
    assert found[0] > 0.8 and found[1] < 0.5
    assert len(list((tmp_path / "runs" / "dense").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("backbone.weights=digits.safetensor", "there is no file 'digits.safetensor'"),
        ("backbone.weights=3", "expected the name of a file, or of weights, got 3"),
        ("backbone.weights=pretrained", "only networks of timm and torchvision have weights"),
        ("backbone.width=0.5", "does not fit Sequential: 2"),
        ("data.classes=[1, 2, 3]", "has 10 classes, the data set 3: only the last layer, 'classif"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    change: str, said: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--set", change, "--output", str(tmp_path / "runs")]
    assert trial_main([str(written(tmp_path, weights)), *run]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs" / "pretrained").exists()


@pytest.mark.usefixtures("no_report")
def test_with_dense_training_the_last_layer_is_drawn_anew_and_it_is_said(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["data.classes=[1, 2, 3]", "training.epochs=2"]
    run = [word for change in changes for word in ("--set", change)]
    sweep = str(written(tmp_path, weights))
    assert trial_main([sweep, "--only", "dense", "--output", str(tmp_path / "runs"), *run]) == 0
    assert "the last layer, 'classifier', is drawn anew" in capsys.readouterr().out


def test_a_dry_run_names_the_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = "confirm: {seeds: 1}\n"
    assert sweep_main([str(written(tmp_path, weights, rest)), "--dry-run"]) == 0
    assert f"weights={weights}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        ("logits", "It has 1000 classes: give weights and a network of these 10 classes"),
        ("{'logits': logits}", "got dict of 'logits'"),
        ("(logits, logits) if self.training else logits[:, :10]", "got tuple of 2"),
    ],
)
def test_a_network_that_gives_no_logits_of_the_datas_classes_is_refused_before_anything_starts(
    wrap: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "thousand.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, images):\n"
        "        logits = super().forward(images)\n"
        f"        return {wrap}\n"
        "def net(input_shape, n_classes):\n"
        "    return Net(nn.Flatten(), nn.Linear(64, 1000))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "thousand", raising=False)
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        f"data: {DATA}\nbackbone: {{name: 'thousand:net'}}\n"
        "training: {epochs: 0}\nfine_tuning: {epochs: 1}\nmethods: {dense: {}}\n"
    )
    assert trial_main([str(sweep), "--output", str(tmp_path / "runs")]) == 2
    found = capsys.readouterr().err
    assert "backbone thousand:net: Expected a network that returns" in found and said in found
    assert not (tmp_path / "runs" / "s").exists()


@pytest.mark.usefixtures("no_report")
def test_a_network_of_timm_is_pruned_by_its_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "best.pth.tar")
    sweep = tmp_path / "timm.yaml"
    sweep.write_text(
        f"data: {DATA}\n"
        f"backbone: {{name: 'timm:test_resnet', weights: {tmp_path}/best.pth.tar}}\n"
        "training: {epochs: 0}\nfine_tuning: {epochs: 1}\n"
        "methods: {dense: {}, l1_filter: {keep_multiplications: 0.8}}\n"
    )
    assert trial_main([str(sweep), "--output", str(tmp_path / "runs")]) == 0
    rows = read_trials(tmp_path / "runs" / "timm" / "trials.csv").set_index("method")
    share = rows["multiplications"] / rows["dense_multiplications"]
    assert share["dense"] == 1 and 0.7 < share["l1_filter"] <= 0.82
