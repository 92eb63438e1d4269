"""One adapted backbone serves all penalties and budgets, and changes no bit of any trial."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from rnp.adaptation import Adaptation
from rnp.runtime_neural_pruning import RNP
from rnp.static_prefix import StaticPrefix
from testbed.data import Splits
from testbed.dense_store import DenseRecord, DenseStore
from testbed.method import Run, judged_on
from testbed.shared_stage import stage_spec

Method = RNP | StaticPrefix
QUICK: dict[str, Any] = {"steps": 20, "batch_size": 32, "rounds": 1}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Adaptation]:
    """The options of each adaptation that is trained."""
    found: list[Adaptation] = []
    real = Adaptation.stage

    def counting(self: Adaptation, *arguments: Any) -> Mapping[str, Tensor]:
        found.append(self)
        return real(self, *arguments)

    monkeypatch.setattr(Adaptation, "stage", counting)
    return found


def run(store: Path | None) -> Run:
    found = tiny.run(4)
    found.dense = store and DenseRecord("key", store / "key.safetensors", [], 0.0, True)
    return found


def pruned(method: Method, own: Run, kind: str) -> nn.Module:
    torch.manual_seed(len(own.reported))
    return method.prune(tiny.trained(kind), tiny.splits(), own)


TRIALS: dict[str, list[Callable[[], Method]]] = {
    "rnp": [
        lambda: RNP(p=-0.2, **QUICK),
        lambda: RNP(p=-0.01, encoding=4, hidden=8, **QUICK),
        lambda: RNP(p=-0.01, **{**QUICK, "steps": 10, "rounds": 2}),
    ],
    "static_prefix": [
        lambda: StaticPrefix(keep_multiplications=0.7),
        lambda: StaticPrefix(keep_multiplications=0.9),
    ],
}


@pytest.mark.parametrize("kind", ["conv", "residual"])
@pytest.mark.parametrize("name", TRIALS)
def test_trials_that_share_a_backbone_are_those_that_made_their_own(
    name: str, kind: str, tmp_path: Path, made: list[Adaptation]
) -> None:
    for trial in TRIALS[name]:
        alone, sharing = run(None), run(tmp_path)
        expected = pruned(trial(), alone, kind).state_dict()
        found = pruned(trial(), sharing, kind).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert sharing.reported == alone.reported
        assert sharing.epochs_spent == alone.epochs_spent == 4
    assert len(made) == len(TRIALS[name]) + 1, "one each alone, and one for all"


def key(method: Method, data: Splits | None = None) -> str:
    judged = judged_on(method, data or tiny.splits())
    spec = stage_spec(method, tiny.trained(), judged, run(Path("store")))
    return DenseStore.key(spec)


OTHER: dict[str, Any] = {
    "k": 2,
    "adaptation": 0.5,
    "order_channels": False,
    "prefixes": "widths",
    "distillation": 0.5,
}


@pytest.mark.parametrize("option", OTHER)
def test_every_option_of_the_adaptation_makes_another_backbone(option: str) -> None:
    assert OTHER.keys() == Adaptation.model_fields.keys()
    changed = {option: OTHER[option]}
    assert key(RNP(**changed)) != key(RNP())
    assert key(StaticPrefix(**changed)) != key(StaticPrefix())


LATER: list[dict[str, Any]] = [
    {"p": -0.5},
    {"keep_multiplications": 0.5},
    {"rounds": 1},
    {"learn_last": True},
    {"steps": 5, "batch_size": 7, "learner": "cost_to_go"},
    {"encoding": 3, "hidden": 5},
    {"price": "multiplications", "q_weight_decay": 10.0},
]


@pytest.mark.parametrize("options", LATER, ids=str)
def test_what_comes_after_the_adaptation_does_not(options: dict[str, Any]) -> None:
    assert key(RNP(**options)) == key(RNP())


def test_fixed_prefixes_of_every_budget_share_one_where_they_are_judged_alike() -> None:
    keys = {key(StaticPrefix(keep_multiplications=share)) for share in (0.3, 0.5, 1.0)}
    assert len(keys) == 1
    assert key(StaticPrefix(choice_share=0.3)) not in keys, "its accuracies are of other images"


def test_an_adapted_backbone_is_found_after_a_stop_without_a_store(
    tmp_path: Path, made: list[Adaptation], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise StoppedError

    method, first, second = RNP(**QUICK), run(None), run(None)
    first.folder = second.folder = tmp_path
    with monkeypatch.context() as patch:
        patch.setattr("rnp.runtime_neural_pruning.learn_decisions", stop)
        with pytest.raises(StoppedError):
            pruned(method, first, "conv")
    pruned(method, second, "conv")
    assert len(made) == 1
