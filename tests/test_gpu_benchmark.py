"""`python -m benchmarks.gpu --quick`, on the CPU."""

import json
import multiprocessing
from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.fixture
def _processes_import_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the trainings side by side, where each would import torch and more by itself."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["benchmarks.gpu"])
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda method: server)


@pytest.mark.usefixtures("_processes_import_once")
def test_the_short_form_measures_everything_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--quick", "--device", "cpu", "--output", str(tmp_path / "gpu")]
    assert gpu.main(command) == 0
    figures = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert figures["tests"]["passed"] and figures["agreement"]["conv"]["agrees"]
    assert figures["speed"]["networks"]["conv"]["images a second"] > 0
    assert 0 < figures["speed"]["networks"]["conv"]["share of the matmul's"] < 1
    assert figures["speed"]["side by side"]["2"]["images a second"] > 0
    assert figures["comparison"] == {"completed trials": {"conv_0": 2}, "done": True}
    table = (tmp_path / "gpu" / "gpu.md").read_text()
    assert "| conv_0 | 2 |" in table

    changed = figures | {"speed": figures["speed"] | {"matmul multiplications a second": 1.0}}
    (tmp_path / "gpu" / "gpu.json").write_text(json.dumps(changed))
    assert gpu.main(command) == 0
    assert json.loads((tmp_path / "gpu" / "gpu.json").read_text()) == changed
    assert capsys.readouterr().out.count("speed\n") == 1, "what is done is not done again"


def test_without_a_gpu_or_the_data_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "expected a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cuda", "--data-root", str(tmp_path)])
    assert "cifar10.npz" in capsys.readouterr().err
