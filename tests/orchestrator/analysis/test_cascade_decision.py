"""Whether a cascade of a sweep's own networks is named, and where that is said."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.answer import answer, cascade_said, last_lines
from orchestrator.analysis.cascade_decision import Ahead, OwnCascades, named_cascade
from orchestrator.analysis.contender import Limits
from orchestrator.analysis.decision import cascade_command, decisions
from orchestrator.analysis.sweep_result import SweepResult
from orchestrator.analysis.uncertainty import paired_error
from orchestrator.deploy.selection import choose
from orchestrator.report.tables.answers import export_commands
from orchestrator.run_folder.trials_table import write_images
from tests.knowing_networks import knowing, rows_of, swept, write
from tests.report_rows import DENSE, result_of, trial

HALF = Limits(share=0.5)


def ahead(result: SweepResult, limits: Limits = HALF) -> Ahead | None:
    return OwnCascades(result).ahead("all", limits)


def test_a_cascade_that_is_ahead_on_the_judging_images_is_named(tmp_path: Path) -> None:
    networks = knowing(4000, 6)
    found = ahead(swept(tmp_path, networks))
    assert found is not None and found.n == 1
    own = found.cascade
    assert own.share <= 0.505 and own.ahead == found.points > 2 * found.error
    within = networks.alone[networks.costs <= 0.505 * DENSE]
    best = within.loc[within["val_accuracy"].idxmax()]
    assert (own.alone, own.alone_accuracy) == (best["trial_id"], best["accuracy"])


def test_few_images_do_not_tell(tmp_path: Path) -> None:
    assert ahead(swept(tmp_path, knowing(60, 6))) is None


def test_luck_of_the_images_that_choose_names_a_cascade_in_few_sweeps_of_blind_networks(
    tmp_path: Path,
) -> None:
    named = 0
    for seed in range(20):
        networks = knowing(300, 4, seed=seed, blind=True)
        named += ahead(swept(tmp_path / str(seed), networks)) is not None
    assert named <= 3


def test_what_was_judged_on_other_images_or_decides_per_image_must_be_beaten_too(
    tmp_path: Path,
) -> None:
    networks = knowing(4000, 6)
    before = ahead(swept(tmp_path / "a", networks))
    assert before is not None
    elsewhere = trial("policy_gradient", before.cascade.accuracy, 0.4, validation_images=2000)
    assert ahead(swept(tmp_path / "b", networks, [elsewhere])) is None
    worse = {**elsewhere, "val_accuracy": before.cascade.accuracy - 0.1}
    assert ahead(swept(tmp_path / "c", networks, [worse])) == before
    dearer = {**elsewhere, "multiplications": 0.6 * DENSE}
    assert ahead(swept(tmp_path / "d", networks, [dearer])) == before
    cheap = networks.rows.assign(multiplications=networks.costs)
    cheap.loc[5, "multiplications"] = 0.45 * DENSE  # the dearest, the best, if it decides per image
    cheap["share"] = cheap["multiplications"] / DENSE
    deciding = dataclasses.replace(networks, rows=cheap)
    result = swept(tmp_path / "e", deciding)
    write_images(tmp_path / "e", "n5", ["a"], [True], [10])
    found = ahead(result)
    assert found is None or found.cascade.alone == "n5"


def test_under_limits_of_latency_and_accuracy_no_cascade_competes(tmp_path: Path) -> None:
    result = swept(tmp_path, knowing(4000, 6))
    for limits in (Limits(latency_ms=5), Limits(latency_ratio=0.5), Limits(min_accuracy=0.1)):
        assert ahead(result, limits._replace(share=0.5)) is None
        assert "compete where --max-multiplications is the only" in choose(result, limits).why


def seeds(path: Path, *blind: bool) -> SweepResult:
    rows = []
    for seed, own in enumerate(blind):
        networks = knowing(4000, 6, seed=seed, blind=own)
        names = [f"s{seed}-{place}" for place in range(6)]
        write(path, networks, names)
        found = rows_of(networks, seed=seed, cell="all")
        rows += [{**row, "trial_id": name} for row, name in zip(found, names, strict=True)]
    return result_of(path, rows)


def test_of_several_seeds_the_mean_must_be_ahead_in_all_of_them(tmp_path: Path) -> None:
    found = ahead(seeds(tmp_path / "a", False, False, False))
    assert found is not None and found.n == 3
    each = [ahead(seeds(tmp_path / str(k), *[False] * (k + 1))) for k in range(3)]
    assert each[0] is not None and each[0].n == 1
    assert found.error < each[0].error
    assert "mean of 3 seeds" in cascade_said(found)
    assert ahead(seeds(tmp_path / "b", False, True)) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_command_names_the_same_cascade_beside_the_same_network(
    tmp_path: Path, seed: int
) -> None:
    result = swept(tmp_path, knowing(4000, 8, seed=seed))
    cascades, named = OwnCascades(result), 0
    for share in (0.3, 0.45, 0.5, 0.75):
        if found := cascades.ahead("all", Limits(share=share)):
            own, named = found.cascade, named + 1
            assert named_cascade(result, own.networks, own.at_most) == own
            words = cascade_command(result, own).split()
            trial_id, most = (
                words[words.index(name) + 1] for name in ("--trial", "--max-multiplications")
            )
            choice = choose(result, Limits(multiplications=float(most)), trial_id=trial_id)
            assert choice.cascade == own and choice.trial_id == trial_id
    assert named >= 2


def test_a_cascade_is_had_by_its_networks_in_their_order(tmp_path: Path) -> None:
    result = swept(tmp_path, knowing(400, 4))
    most = named_cascade(result, ["n0", "n3"])
    assert most.networks == ("n0", "n3")
    less = named_cascade(result, ["n0", "n3"], 0.3 * DENSE)
    assert less.multiplications <= 0.3 * DENSE < most.multiplications
    assert less.chosen_by <= most.chosen_by
    assert named_cascade(result, ["n3", "n0"]).multiplications >= DENSE
    for names, said in (
        (["n0"], "two or three different networks"),
        (["n0", "n0"], "two or three different networks"),
        (["n0", "n1", "n2", "n3"], "two or three different networks"),
        (["n0", "n9"], "n9: expected completed trials"),
    ):
        with pytest.raises(ValueError, match=said):
            named_cascade(result, names)
    with pytest.raises(ValueError, match=r"cheapest cascade of n0, n3 has .*: relax the limit"):
        named_cascade(result, ["n0", "n3"], 0.05 * DENSE)
    write_images(tmp_path, "n1", ["a"], [True], [10])
    with pytest.raises(ValueError, match="spend the same on every image"):
        named_cascade(result, ["n0", "n1"])
    with pytest.raises(ValueError, match="one cell and seed"):
        named_cascade(seeds(tmp_path / "seeds", False, False), ["s0-0", "s1-1"])


# Where it is said


def test_report_terminal_and_choose_say_it_beside_the_network_that_they_name(
    tmp_path: Path,
) -> None:
    networks = knowing(4000, 6)
    result = swept(tmp_path, networks)
    found = ahead(result)
    assert found is not None
    said, command = cascade_said(found), cascade_command(result, found.cascade)
    headline, more = answer(result)
    assert headline.startswith("vanilla is the most accurate at half")
    assert more.endswith(said) and "It is not confirmed." in said
    assert last_lines(result)[-1] == f"{said} Confirm and export it: {command}"
    choice = choose(result)
    assert choice.cascade is None and choice.why.endswith(
        f"{said} Confirm and export it: {command}"
    )
    half = [each for each in decisions(result) if each.budget == 0.5]
    assert [each for _, each in export_commands(result, half)][1] == command


def test_within_a_limit_of_multiplications_choose_names_it(tmp_path: Path) -> None:
    result = swept(tmp_path, knowing(4000, 6))
    choice = choose(result, Limits(multiplications=0.5 * DENSE))
    found = ahead(result, Limits(multiplications=0.5 * DENSE))
    assert found is not None and choice.cascade == found.cascade
    assert choice.trial_id == ",".join(found.cascade.networks)
    assert choice.network == found.cascade.networks[-1]
    assert f"Next: {choice.best.trial_id}, accuracy" in choice.why
    assert choose(result, Limits(multiplications=0.5 * DENSE), method="vanilla").cascade is None


# How sure the difference is


def test_the_paired_error_is_that_of_the_differences_where_images_are_many() -> None:
    random = np.random.default_rng(0)
    one, other = random.random((2, 20_000)) < np.array([[0.8], [0.77]])
    plain = 100 * (one.astype(float) - other).std() / 20_000**0.5
    assert paired_error(one, other) == pytest.approx(plain, rel=0.01)
    assert paired_error(one, other) == pytest.approx(paired_error(other, one))


def test_the_paired_error_of_two_that_never_differ_is_not_nothing() -> None:
    """Agresti and Min: half an image more in each outcome, so (1 - 0) / 102 squared of 100."""
    right = np.ones(100, dtype=bool)
    assert paired_error(right, right) == pytest.approx(100 / 102)
    one = pd.Series([True] * 6 + [False] * 4).to_numpy()
    other = pd.Series([True] * 4 + [False] * 6).to_numpy()  # 2 ahead, 0 behind, of 10
    assert paired_error(one, other) == pytest.approx(100 * (3 - 2**2 / 12) ** 0.5 / 12)
