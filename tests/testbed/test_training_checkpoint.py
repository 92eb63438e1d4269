"""A training that was stopped goes on, and ends as it would have ended."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import testbed.training_checkpoint
from testbed.data import Splits
from testbed.training import Distillation, Training, train

SETTINGS = Training(epochs=5, batch_size=32, learning_rate=0.05, precision="float32")
FILE = "training.safetensors"


class Stopped(Exception):  # noqa: N818 (no error)
    pass


@pytest.fixture(autouse=True)
def kept_at_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed.training_checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(testbed.training_checkpoint, "SHARE", 0)


def trained(
    folder: Path,
    stop_at: int | None = None,
    *,
    network: Callable[[], nn.Module] = tiny.network,
    settings: Training = SETTINGS,
    data: Splits | None = None,
    seed: int = 4,
) -> tuple[dict[str, torch.Tensor], list[Mapping[str, float]], int]:
    """The weights, the reports, and how many epochs were really trained here."""
    reports: list[Mapping[str, float]] = []
    model, steps = network(), []
    model.register_forward_hook(lambda module, *_: steps.append(module.training))

    def report(values: Mapping[str, float]) -> None:
        reports.append(values)
        if values["epoch"] == stop_at:
            raise Stopped

    with suppress(Stopped):
        train(
            model,
            data or tiny.splits(),
            settings,
            seed=seed,
            device=torch.device("cpu"),
            report=report,
            teacher=tiny.trained(),
            checkpoint=folder / FILE,
        )
    return model.state_dict(), reports, sum(steps) // 3  # batches of an epoch


@pytest.mark.parametrize("stops", [(1,), (4,), (2, 3), (5,)])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_what_goes_on_ends_bit_for_bit_as_without_the_stop(
    tmp_path: Path, stops: tuple[int, ...], momentum: float
) -> None:
    teaching = Distillation(teacher={}, weight=0.5)
    settings = SETTINGS.model_copy(update={"momentum": momentum, "distillation": teaching})
    expected, all_reports, _ = trained(tmp_path / "calm", settings=settings)
    for stop in stops:
        trained(tmp_path, stop, settings=settings)
    torch.manual_seed(99)  # whatever this process has drawn meanwhile
    found, reports, epochs = trained(tmp_path, settings=settings)
    assert epochs == SETTINGS.epochs - stops[-1]
    assert reports == all_reports
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("other", ["network", "settings", "data", "seed"])
def test_what_is_of_another_training_is_not_gone_on_with(tmp_path: Path, other: str) -> None:
    def another_network() -> nn.Module:
        network = tiny.network()
        with torch.no_grad():
            next(network.parameters())[0] += 1
        return network

    changes = {
        "network": {"network": another_network},
        "settings": {"settings": SETTINGS.model_copy(update={"weight_decay": 0.0})},
        "data": {"data": tiny.splits(brighter=91)},
        "seed": {"seed": 5},
    }
    trained(tmp_path, stop_at=3)
    found, _, epochs = trained(tmp_path, **changes[other])
    expected, _, _ = trained(tmp_path / "calm", **changes[other])
    assert epochs == SETTINGS.epochs
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_damaged_file_is_said_and_the_training_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, stop_at=3)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / FILE).write_bytes(content)
    _, _, epochs = trained(tmp_path)
    assert epochs == SETTINGS.epochs
    assert "is damaged" in caplog.text and "starts anew" in caplog.text


def test_short_trainings_write_nothing_and_long_saves_come_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    written = []

    def writing(*_: object) -> None:
        nonlocal now
        written.append(now)
        now += 2

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    monkeypatch.setattr(testbed.training_checkpoint, "time", Clock)
    monkeypatch.setattr(testbed.training_checkpoint, "write_tensors", writing)
    monkeypatch.setattr(testbed.training_checkpoint, "EVERY_S", 20.0)
    monkeypatch.setattr(testbed.training_checkpoint, "SHARE", 50)
    parameter = nn.Linear(1, 1)
    checkpoint = testbed.training_checkpoint.TrainingCheckpoint(
        tmp_path / FILE, parameter, torch.optim.SGD(parameter.parameters()), {}, {}
    )
    for _ in range(60):
        now += 5
        checkpoint.epoch_ended({})
    assert written == [20.0, 122.0, 224.0]  # then at most one part in fifty goes to writing
