"""Dense networks are trained once: whatever asks for them, and whatever happens meanwhile."""

import ast
import copy
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dense_store_process
import pytest
import tiny
import torch
from torch import nn

from testbed import dense_store
from testbed.dense_store import CODE, DenseStore, History
from testbed.training import Training, train

SPEC = {
    "data": {"name": "tiny", "crop": 1},
    "fingerprint": "a1",
    "input_shape": [2, 8, 8],
    "backbone": {"name": "conv", "channels": [6, 8], "dropout": 0.1},
    "training": {"epochs": 2, "learning_rate": 0.05},
    "teacher": None,
    "seed": 3,
}


class Counting:
    """Trains tiny networks for real, and counts how often it had to."""

    def __init__(self) -> None:
        self.trainings = 0

    def __call__(self, network: nn.Module, checkpoint: Path) -> History:
        self.trainings += 1
        checkpoint.touch()
        history: History = []
        settings = Training(epochs=2, batch_size=48, learning_rate=0.05, precision="float32")
        train(
            network,
            tiny.splits(),
            settings,
            seed=3,
            device=torch.device("cpu"),
            report=lambda values: history.append(dict(values)),
        )
        return history


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_network_is_trained_once_and_then_found_by_every_store(tmp_path: Path) -> None:
    training = Counting()
    made, first = DenseStore(tmp_path).get_or_train(SPEC, tiny.network, training)
    found, second = DenseStore(tmp_path).get_or_train(SPEC, tiny.network, training)
    assert training.trainings == 1
    assert same(made, found) and not same(made, tiny.network())
    assert not made.training and not found.training
    assert (first.found, second.found) == (False, True)
    assert first.history == second.history and [e["epoch"] for e in first.history] == [1, 2]
    assert first.duration_s == second.duration_s > 0
    assert list(tmp_path.iterdir()) == [first.path]


def test_the_order_of_a_spec_does_not_matter() -> None:
    backwards = {
        name: dict(reversed(part.items())) if isinstance(part, dict) else part
        for name, part in reversed(SPEC.items())
    }
    assert list(backwards) != list(SPEC)
    assert DenseStore.key(backwards) == DenseStore.key(SPEC)


def _variants() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, part in SPEC.items():
        for key in part if isinstance(part, dict) else [None]:
            changed: dict[str, Any] = copy.deepcopy(SPEC)
            if key is None:
                changed[name] = "another"
            else:
                changed[name][key] = "another"
            yield f"{name}.{key}", changed
    yield "more", {**SPEC, "more": None}


@pytest.mark.parametrize("changed", [pytest.param(spec, id=name) for name, spec in _variants()])
def test_any_change_of_a_spec_is_another_network(changed: dict[str, Any]) -> None:
    assert DenseStore.key(changed) != DenseStore.key(SPEC)


def test_the_code_of_the_testbed_and_the_version_of_torch_are_in_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = DenseStore.key(SPEC)
    monkeypatch.setattr(torch, "__version__", "0.0")
    dense_store._testbed_code.cache_clear()
    other_torch = DenseStore.key(SPEC)
    monkeypatch.undo()
    monkeypatch.setattr(dense_store, "CODE", CODE[1:])
    dense_store._testbed_code.cache_clear()
    other_code = DenseStore.key(SPEC)
    monkeypatch.undo()
    dense_store._testbed_code.cache_clear()
    assert len({before, other_torch, other_code, DenseStore.key(SPEC)}) == 3


def test_all_testbed_modules_that_training_needs_are_in_the_key() -> None:
    """But for names, what loads images (the fingerprint is of what these give), and checkpoints (a
    training that goes on gives the same network)."""
    no_matter = {"names", "data_set", "data_sets", "image_folder", "selection", "stratified"}
    no_matter |= {"training_checkpoint"}
    found: set[str] = set()
    to_read = {"training", "backbones"}
    while to_read:
        module = to_read.pop()
        found.add(module)
        to_read |= _testbed_imports(module) - no_matter - found
    assert {f"{module}.py" for module in found} == set(CODE)


def _testbed_imports(module: str) -> set[str]:
    tree = ast.parse((Path(dense_store.__file__).parent / f"{module}.py").read_text())
    imported: set[str] = set()
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module == "testbed":
            imported |= {name.name for name in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            package, _, name = statement.module.partition(".")
            imported |= {name} if package == "testbed" else set()
    return imported


def test_the_source_of_a_users_network_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "users_networks_for_the_key.py"
    source.write_text("def small(): return 1\n")
    spec = {**SPEC, "backbone": {"name": "users_networks_for_the_key:small"}}
    before = DenseStore.key(spec)
    assert DenseStore.key(spec) == before
    source.write_text("def small(): return 1 + 1\n")
    assert DenseStore.key(spec) != before
    with pytest.raises(ValueError, match="nowhere_to_be_found"):
        DenseStore.key({**SPEC, "backbone": {"name": "nowhere_to_be_found:small"}})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)


def _anothers(path: Path) -> None:
    _, record = DenseStore(path.parent).get_or_train({**SPEC, "seed": 4}, tiny.network, Counting())
    record.path.replace(path)


@pytest.mark.parametrize("damage", [_cut, _empty, _flip, _anothers])
def test_a_damaged_file_is_noticed_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    training = Counting()
    made, first = DenseStore(tmp_path).get_or_train(SPEC, tiny.network, training)
    damage(first.path)
    with caplog.at_level(logging.WARNING):
        again, second = DenseStore(tmp_path).get_or_train(SPEC, tiny.network, training)
    assert training.trainings == 2 and not second.found
    assert same(made, again)
    (warning,) = caplog.messages
    assert str(first.path) in warning and "damaged" in warning and "made again" in warning
    assert DenseStore(tmp_path).get_or_train(SPEC, tiny.network, training)[1].found


def test_a_training_that_fails_leaves_nothing_to_be_found(tmp_path: Path) -> None:
    def failing(network: nn.Module, checkpoint: Path) -> History:
        raise RuntimeError("diverged")

    training = Counting()
    with pytest.raises(RuntimeError, match="diverged"):
        DenseStore(tmp_path).get_or_train(SPEC, tiny.network, failing)
    _, record = DenseStore(tmp_path).get_or_train(SPEC, tiny.network, training)
    assert training.trainings == 1 and not record.found


class Processes:
    """Real processes that want the same network of a store, and what they say in a log."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log = folder / "store", folder / "log"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, seconds: float) -> subprocess.Popen[bytes]:
        script = str(dense_store_process.__file__)
        arguments = [str(self.store), str(seconds), str(self.log)]
        self.started.append(subprocess.Popen([sys.executable, script, *arguments]))
        return self.started[-1]

    def words(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def wait_for(self, word: str, times: int = 1) -> None:
        deadline = time.monotonic() + 120
        while self.words().count(word) < times:
            assert time.monotonic() < deadline, f"waited in vain for {word!r}: {self.words()}"
            time.sleep(0.02)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    these = Processes(tmp_path)
    yield these
    for process in these.started:
        process.kill()
        process.wait()


def test_of_processes_that_want_the_same_network_one_trains_it(processes: Processes) -> None:
    for process in [processes.start(0.5) for _ in range(3)]:
        assert process.wait(120) == 0
    told = sorted(word for word in processes.words() if word != "wants")
    assert told == ["ended", "found", "found", "made", "started"]
    assert [path.suffix for path in processes.store.iterdir()] == [".safetensors"]


def test_when_a_process_is_killed_while_it_trains_the_next_takes_over(
    processes: Processes,
) -> None:
    first = processes.start(600)
    processes.wait_for("started")
    key = DenseStore.key(dense_store_process.SPEC)
    leftover = processes.store / f".{key}.safetensors.0.tmp"  # as if it had begun to write
    leftover.write_bytes(b"half")
    second = processes.start(0)
    processes.wait_for("wants", times=2)
    time.sleep(0.5)
    assert processes.words() == ["wants", "started", "wants"]
    first.kill()
    assert second.wait(120) == 0
    assert processes.words() == ["wants", "started", "wants", "started", "ended", "made"]
    assert [path.name for path in processes.store.iterdir()] == [f"{key}.safetensors"]


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> Mapping[str, Any]:
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr("torch.load", refuse)
    for _ in range(2):
        DenseStore(tmp_path).get_or_train(SPEC, tiny.network, Counting())
