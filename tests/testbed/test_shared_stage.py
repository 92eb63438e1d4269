"""Stages that trials share: what they are found by, and that a trial goes on alike either way."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

import testbed.shared_stage
import testbed.training_checkpoint
from testbed.data import Splits
from testbed.dense_store import DenseRecord, DenseStore
from testbed.method import Judge, Run
from testbed.shared_stage import SharesStage, obtain_stage, stage_spec

MADE: list["Method"] = []


class Method(BaseModel):
    """Its stage is a network that is fine-tuned, its `strength` is for later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = 2
    scale: float = 1.0
    strength: float = 0.0

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        return frozenset({"epochs", "scale"})

    def stage(self, model: nn.Module, data: Splits, run: Run) -> Mapping[str, Tensor]:
        MADE.append(self)
        network = tiny.network()
        network.load_state_dict({k: self.scale * v for k, v in model.state_dict().items()})
        run.fine_tune(network, data, self.epochs)
        return network.state_dict()


@pytest.fixture(autouse=True)
def _none_made() -> None:
    MADE.clear()


def run(store: Path | None = None, epochs: int = 4, **others: Any) -> Run:
    found = tiny.run(epochs)
    found.dense = store and DenseRecord("key", store / "key.safetensors", [], 0.0, True)
    for name, value in others.items():
        setattr(found, name, value)
    return found


def test_options_that_do_not_enter_cannot() -> None:
    obtain_stage(Method(scale=0.5, strength=3.0), tiny.trained(), tiny.splits(), run())
    assert [Method(scale=0.5)] == MADE


def obtained(method: Method, own: Run, seed: int = 1) -> Mapping[str, Tensor]:
    """Whatever was drawn before."""
    torch.manual_seed(seed)
    return obtain_stage(method, tiny.trained(), tiny.splits(), own)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_found_made_and_unkept_stages_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    runs = [run(), run(tmp_path), run(tmp_path)]
    stages = [obtained(Method(), own, seed) for seed, own in enumerate(runs)]
    assert len(MADE) == 2, "alone, and for the store"
    assert same(stages[0], stages[1]) and same(stages[0], stages[2])
    assert not same(stages[0], tiny.trained().state_dict())
    assert runs[0].reported == runs[1].reported == runs[2].reported
    assert [values["epoch"] for values in runs[2].reported if "epoch" in values] == [1, 2]
    assert sum(values.get("training_epochs", 0) for values in runs[2].reported) == 2
    assert [own.epochs_spent for own in runs] == [2, 2, 2]
    after = [own.seed + own.epochs_spent for own in runs]
    assert len({*after}) == 1, "the seed of the fine-tuning that follows"
    assert isinstance(Method(), SharesStage)


def test_options_that_enter_later_do_not_make_another_stage(tmp_path: Path) -> None:
    for strength in (0.0, 0.5, 1.0):
        obtained(Method(strength=strength), run(tmp_path))
    assert len(MADE) == 1
    assert len(list(tmp_path.iterdir())) == 1, "nothing is left beside the stage"


def key(method: Method | None = None, own: Run | None = None, **given: Any) -> str:
    model, data = given.get("model", tiny.trained()), given.get("data", tiny.splits())
    return DenseStore.key(stage_spec(method or Method(), model, data, own or run(Path("store"))))


def _retrained() -> nn.Module:
    model = tiny.trained()
    with torch.no_grad():
        next(model.parameters())[0] += 1e-6
    return model


def _other_dense() -> Run:
    other = run()
    other.dense = DenseRecord("another", Path("store", "another.safetensors"), [], 0.0, True)
    return other


def _settings(**changed: Any) -> Any:
    return run().fine_tuning.model_copy(update=changed)


OTHERS: dict[str, dict[str, Any]] = {
    "an option that enters": {"method": Method(epochs=1)},
    "another": {"method": Method(scale=0.5)},
    "seed": {"own": run(Path("store"), seed=1)},
    "fine-tuning epochs": {"own": run(Path("store"), epochs=5)},
    "learning rate": {"own": run(Path("store"), fine_tuning=_settings(learning_rate=0.1))},
    "recipe of the dense network": {"own": run(Path("store"), training=_settings(momentum=0.5))},
    "teacher": {"own": run(Path("store"), teacher=tiny.network("residual"))},
    "dense network": {"own": _other_dense()},
    "its weights": {"model": _retrained()},
    "data": {"data": tiny.splits(n_validation=30)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_enters_makes_another_stage(name: str) -> None:
    assert key(**OTHERS[name]) != key()


def test_what_does_not_enter_makes_no_other_stage(tmp_path: Path) -> None:
    judge = Judge(rungs=(1,), look=lambda epochs, values: None)
    assert key(Method(strength=3.0), run(Path("elsewhere"), folder=tmp_path, judge=judge)) == key()


def test_the_code_of_the_methods_module_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(testbed.shared_stage, "_code", lambda module: f"other {module}")
    assert key() != before


class Stopped(Exception):  # noqa: N818 (no error)
    pass


def test_a_stage_that_was_stopped_goes_on_and_ends_as_without_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testbed.training_checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(testbed.training_checkpoint, "SHARE", 0)
    whole, trained = run(), []
    expected = obtained(Method(epochs=3), whole)

    def stop(values: Mapping[str, float]) -> None:
        if values.get("epoch") == 2:
            raise Stopped

    first = run(tmp_path)
    first._listener = stop
    with pytest.raises(Stopped):
        obtained(Method(epochs=3), first)
    real_evaluate = testbed.training.evaluate

    def counting_evaluate(*arguments: Any, **settings: Any) -> float:
        trained.append(1)
        return real_evaluate(*arguments, **settings)

    monkeypatch.setattr(testbed.training, "evaluate", counting_evaluate)
    second = run(tmp_path)
    assert same(obtained(Method(epochs=3), second), expected)
    assert second.reported == whole.reported and second.epochs_spent == 3
    assert len(trained) == 1, "two of its three epochs had been trained"
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_without_a_store_it_is_kept_in_the_runs_folder(tmp_path: Path) -> None:
    for _ in range(2):
        obtained(Method(), run(folder=tmp_path))
    assert len(MADE) == 1


def test_nobody_judges_a_stage() -> None:
    def look(epochs: int, values: Mapping[str, float]) -> None:
        raise AssertionError("a stage costs not yet what the method is to make of it")

    obtained(Method(), run(judge=Judge(rungs=(1,), look=look)))


class Slow(BaseModel):
    """Its stage takes long enough for another thread to come by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def stage_options(cls) -> frozenset[str]:
        return frozenset()

    def stage(self, model: nn.Module, data: Splits, run: Run) -> Mapping[str, Tensor]:
        MADE.append(Method())
        time.sleep(0.5)
        run.report({"step": 1.0})
        return {"one": torch.ones(1)}


def test_of_two_that_want_a_stage_at_once_one_makes_it(tmp_path: Path) -> None:
    model, data = tiny.trained(), tiny.splits()
    stages: list[Mapping[str, Tensor]] = []
    runs = [run(tmp_path) for _ in range(2)]

    def want(own: Run) -> None:
        stages.append(obtain_stage(Slow(), model, data, own))

    threads = [threading.Thread(target=want, args=[own]) for own in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(MADE) == 1 and len(stages) == 2 and same(*stages)
    assert [own.reported for own in runs] == [[{"step": 1.0}]] * 2
