"""The network that a sweep ends with: which one is named."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.answer import answer, last_lines
from orchestrator.analysis.contender import Limits
from orchestrator.deploy.selection import choose
from tests.report_rows import CONFIRMED, SMALL, failed, result_of


def chosen(path: Path, rows: list[dict[str, Any]], **limits: float) -> tuple[str, str, str]:
    found = choose(result_of(path, rows), Limits(**limits))
    return found.trial_id, found.network, found.why


def test_the_most_accurate_confirmed_network_within_the_limit_is_named(tmp_path: Path) -> None:
    trial_id, network, why = chosen(tmp_path, CONFIRMED, multiplications=5e7)
    assert trial_id == "vanilla-002"
    assert network.startswith("vanilla-002-c")
    assert "the most accurate within 50.0 M multiplications" in why
    assert "accuracy 0.850 ± 0.010 on test images, confirmed with 3 fresh seeds" in why
    assert "Next: l1_filter-006" in why


def test_without_limits_it_is_the_network_of_the_reports_headline(tmp_path: Path) -> None:
    for name, rows in {"confirmed": CONFIRMED, "searched": SMALL}.items():
        result = result_of(tmp_path / name, rows)
        assert answer(result)[0].startswith(f"{choose(result).best.method} is the most accurate")
        assert f"--trial {choose(result).trial_id} " in last_lines(result)[-1]
        assert choose(result).trial_id == choose(result, Limits(share=0.5)).trial_id


def test_the_search_figures_do_not_choose(tmp_path: Path) -> None:
    """By validation l1_filter-006 was ahead."""
    before = chosen(tmp_path / "a", SMALL, multiplications=5e7)
    assert before[0] == before[1] == "l1_filter-006"
    assert "on validation images, not confirmed" in before[2]


def test_an_accuracy_alone_asks_for_the_cheapest(tmp_path: Path) -> None:
    assert chosen(tmp_path, CONFIRMED, min_accuracy=0.8)[0] == "l1_filter-005"
    rows = [row for row in CONFIRMED if row.get("confirms") != "l1_filter-005"]
    assert chosen(tmp_path / "b", rows, min_accuracy=0.8)[0] == "l1_filter-006"
    assert chosen(tmp_path / "c", rows, min_accuracy=0.8, latency_ms=6.0)[0] == "vanilla-002"


def test_any_network_is_had_by_its_method_or_its_name(tmp_path: Path) -> None:
    result = result_of(tmp_path, CONFIRMED)
    assert choose(result, method="random_channels").trial_id == "random_channels-004"
    assert choose(result, Limits(share=0.3), method="l1_filter").trial_id == "l1_filter-005"
    assert choose(result, trial_id="l1_filter-006").network.startswith("l1_filter-006-c")
    assert choose(result, trial_id="l1_filter-006-c2").network == "l1_filter-006-c2"
    assert choose(result, trial_id="l1_filter-007").network == "l1_filter-007"
    with pytest.raises(ValueError, match=r"No trial is of 'rnp'\. The sweep's methods: dense,"):
        choose(result, method="rnp")
    with pytest.raises(ValueError, match="x: there is no such trial"):
        choose(result, trial_id="x")
    broken = result_of(tmp_path / "b", [*SMALL, failed("l1_filter", "OSError: x")])
    with pytest.raises(ValueError, match="l1_filter-009: it is failed, and left no network"):
        choose(broken, trial_id="l1_filter-009")


def test_of_several_data_sets_none_is_the_best(tmp_path: Path) -> None:
    rows = [{**row, "cell": f"name={name}", "dataset": name} for row in SMALL for name in "ab"]
    with pytest.raises(ValueError, match=r"best of each: l1_filter-013 on b and l1_filter-012 on"):
        choose(result_of(tmp_path, rows))


def test_the_network_is_the_fresh_seeds_best_on_validation_images(tmp_path: Path) -> None:
    rows = [
        {**row, "val_accuracy": 0.7 + row["seed"] / 100 if row["seed"] == 2 else 0.6}
        if row.get("confirms") == "vanilla-002"
        else row
        for row in CONFIRMED
        if row.get("confirms") != "l1_filter-005"
    ]
    assert chosen(tmp_path, rows, multiplications=5e7)[1] == "vanilla-002-c2"


def test_limits_that_nothing_meets_say_how_near_it_comes(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cheapest of them has 45\.0 M .* the most accurate reaches 0\.890"
    ):
        chosen(tmp_path, CONFIRMED, multiplications=1e6)
    with pytest.raises(ValueError, match="nothing to choose from"):
        chosen(tmp_path / "none", [])
