"""What old run folders and dense stores are found by: names of studies, keys of networks."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan import make_plan, networks_of
from orchestrator.sweep_file import load_sweep

PROJECT = Path(__file__).parents[3]
KNOWN = json.loads(Path(__file__).with_name("names_and_keys.json").read_text())


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def names_and_keys(path: Path) -> dict[str, Any]:
    """Digests of all names, and of all keys: known beforehand, and of two trials of every study."""
    plan = make_plan(load_sweep(path))
    trials = [
        study.trial(abs(end), study.values(lambda _, found, end=end: found.drawn[end]))
        for study in plan.studies
        for end in (0, -1)
    ]
    known = [network.spec("data") for network in plan.dense_networks]
    needed = [network.spec("data") for trial in trials for network in networks_of(trial)]
    return {
        "first": trials[0].trial_id,
        "names": digest([[study.name, study.cell, str(study.n_trials)] for study in plan.studies]),
        "known": digest(known),
        "needed": digest(needed),
    }


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize("name", KNOWN)
def test_names_and_keys_are_what_they_were(name: str) -> None:
    """Another name orphans a run folder's trials, another key trains a kept network again.

    The recipe's keys are those of its weights, which each machine trains for itself.

    Only a change of what networks are, such as a new option of `Training`, may change keys.
    """
    found = names_and_keys(PROJECT / name)
    assert {key: found[key] for key in KNOWN[name]} == KNOWN[name]


def test_every_published_sweep_is_held() -> None:
    published = [*PROJECT.glob("sweeps/*.yaml"), *PROJECT.glob("results/*/sweep.yaml")]
    assert {str(path.relative_to(PROJECT)) for path in published} <= KNOWN.keys()
