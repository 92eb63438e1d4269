"""What a search's tries came to, beside random search of as many."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from report_rows import result_of, trial

from orchestrator.analysis.search_progress import search_progress
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.report.tables.search import search_table


def searched(path: Path, places: list[float], kept: dict[str, object]) -> SweepResult:
    """A study of l1_filter with one try at each share, whose accuracy is that share."""
    rows = [trial("l1_filter", place, place, study="l1", classes=10) for place in places]
    result = result_of(path, rows)
    sweep = yaml.safe_load((path / "sweep.yaml").read_text())
    sweep["methods"]["l1_filter"] = {"keep_ratio": kept}
    (path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return SweepResult.read(*result.folders)


def test_the_hypervolume_grows_try_by_try_in_the_order_of_the_proposals(tmp_path: Path) -> None:
    progress = search_progress(searched(tmp_path, [0.5, 0.4, 0.8, 0.3], {"uniform": [0.1, 0.9]}))
    assert progress["number"].tolist() == [1, 2, 3, 4]
    # A point (cost c, accuracy c) covers (1 - c) (c - 0.1); the union is worked out by hand.
    expected = [
        0.5 * 0.4,
        0.5 * 0.4 + 0.1 * 0.3,
        0.5 * 0.4 + 0.1 * 0.3 + 0.2 * 0.3,
        0.5 * 0.4 + 0.1 * 0.3 + 0.2 * 0.3 + 0.1 * 0.2,
    ]
    assert progress["hypervolume"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_random_search_is_simulated_on_the_lines_between_tries(tmp_path: Path, kind: str) -> None:
    ends = [0.1, 0.9]
    shares = [0.1, 0.3, 0.5, 0.7, 0.9]
    progress = search_progress(searched(tmp_path, shares, {kind: ends}))
    # Accuracy and cost are the share itself, so a first try at x covers (1 - x) (x - 0.1).
    generator = np.random.default_rng(1)
    if kind == "uniform":
        drawn = generator.uniform(*ends, 100_000)
    else:
        places = generator.uniform(*np.log(ends), 100_000)
        drawn = np.interp(places, np.log(shares), shares)
    expected = ((1 - drawn) * (drawn - 0.1)).mean()
    assert progress["random"].iloc[0] == pytest.approx(expected, abs=0.03)
    assert progress["random"].is_monotonic_increasing


def test_without_one_range_of_numbers_random_search_is_not_told(tmp_path: Path) -> None:
    progress = search_progress(searched(tmp_path, [0.5, 0.4, 0.8, 0.3], {"choice": [0.5, 0.4]}))
    assert progress["random"].isna().all()
    assert "by random search" not in search_table(progress).header


def test_studies_of_few_tries_are_left_out(tmp_path: Path) -> None:
    progress = search_progress(searched(tmp_path, [0.5, 0.4], {"uniform": [0.1, 0.9]}))
    assert progress.empty and search_table(progress).rows == []
