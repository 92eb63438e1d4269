"""Methods whose trials share their first steps: that changes no bit of any trial."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from baselines import Cascade, CascadeRandom
from orchestrator.methods import METHODS, method_class
from rnp.rnp_groups import RNPGroups
from rnp.runtime_neural_pruning import RNP
from rnp.static_prefix import StaticPrefix
from testbed.data import Splits
from testbed.dense_store import DenseRecord, DenseStore
from testbed.method import Run, judged_on
from testbed.shared_stage import stage_spec

QUICK: dict[str, Any] = {"steps": 20, "batch_size": 32}
STAGES = (0.34, 0.58)  # shares that both kinds of tiny networks come to

TRIALS: dict[str, list[Callable[[], Any]]] = {
    "rnp": [
        lambda: RNP(p=-0.2, **QUICK, rounds=1),
        lambda: RNP(p=-0.01, encoding=4, hidden=8, **QUICK, rounds=1),
        lambda: RNP(p=-0.01, **{**QUICK, "steps": 10}, rounds=2),
    ],
    "static_prefix": [
        lambda: StaticPrefix(keep_multiplications=0.7),
        lambda: StaticPrefix(keep_multiplications=0.9),
    ],
    "rnp_groups": [
        lambda: RNPGroups(p=-0.2, **QUICK),
        lambda: RNPGroups(keep_multiplications=0.8, **QUICK),
        lambda: RNPGroups(p=-0.01, encoding=2, hidden=3, **QUICK),
    ],
    "cascade": [
        lambda: Cascade(stages=STAGES, keep_multiplications=0.6),
        lambda: Cascade(stages=STAGES, keep_multiplications=0.9, average=False),
        lambda: Cascade(stages=STAGES, confidence="max_softmax"),
    ],
    "cascade_random": [
        lambda: CascadeRandom(stages=STAGES, keep_multiplications=0.6),
        lambda: CascadeRandom(stages=STAGES, keep_multiplications=0.9),
    ],
}


def run(store: Path | None) -> Run:
    found = tiny.run(4)
    found.dense = store and DenseRecord("key", store / "key.safetensors", [], 0.0, True)
    return found


def test_every_method_that_shares_a_stage_is_tested_here() -> None:
    assert TRIALS.keys() == {name for name in METHODS if hasattr(method_class(name), "stage")}


@pytest.mark.parametrize("kind", ["conv", "residual"])
@pytest.mark.parametrize("name", TRIALS)
def test_trials_that_share_a_stage_are_those_that_made_their_own(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = method_class(name).stage

    def counting(self: Any, *arguments: Any) -> Mapping[str, Tensor]:
        made.append(name)
        stage: Mapping[str, Tensor] = real(self, *arguments)
        return stage

    monkeypatch.setattr(method_class(name), "stage", counting)
    for trial in TRIALS[name]:
        each = []
        for own in (run(None), run(tmp_path)):
            torch.manual_seed(len(each))  # what is drawn elsewhere must not matter
            network = trial().prune(tiny.trained(kind), tiny.splits(), own)
            each.append((network.state_dict(), own.reported, own.epochs_spent))
        (alone, *told), (sharing, *told_again) = each
        assert alone.keys() == sharing.keys()
        assert all(torch.equal(sharing[key], tensor) for key, tensor in alone.items())
        assert told_again == told
    assert len(made) == len(TRIALS[name]) + 1, "one each alone, and one for all"


def key(method: Any, data: Splits | None = None) -> str:
    judged = judged_on(method, data or tiny.splits())
    return DenseStore.key(stage_spec(method, tiny.trained(), judged, run(Path("store"))))


ADAPTATION: dict[str, Any] = {
    "k": 2,
    "adaptation": 0.5,
    "order_channels": False,
    "prefixes": "widths",
    "distillation": 0.5,
}
OTHER: dict[str, dict[str, Any]] = {
    "rnp": ADAPTATION,
    "static_prefix": {**ADAPTATION, "choice_share": 0.3},
    "rnp_groups": {"groups": (0.5, 0.9)},
    "cascade": {
        "stages": (0.2, 0.5),
        "scope": "all",
        "keep": ("conv1",),
        "choice_share": 0.3,
    },
}


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in OTHER for option in OTHER[name]]
)
def test_every_option_of_a_stage_makes_another(name: str, option: str) -> None:
    method = method_class(name)
    assert OTHER[name].keys() == method.stage_options()
    assert key(method(**{option: OTHER[name][option]})) != key(method())


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
def test_what_comes_after_a_stage_does_not(options: dict[str, Any]) -> None:
    assert key(RNP(**options)) == key(RNP())


def test_fixed_prefixes_of_every_budget_share_one_where_they_are_judged_alike() -> None:
    keys = {key(StaticPrefix(keep_multiplications=share)) for share in (0.3, 0.5, 1.0)}
    assert len(keys) == 1
    assert key(StaticPrefix(choice_share=0.3)) not in keys, "its accuracies are of other images"


def test_a_stage_is_found_after_a_stop_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            method.prune(tiny.trained(), tiny.splits(), first)
    monkeypatch.setattr(RNP, "stage", stop)
    method.prune(tiny.trained(), tiny.splits(), second)
