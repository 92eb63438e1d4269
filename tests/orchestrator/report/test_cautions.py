"""What a report says to be careful about, and what of each cost."""

from pathlib import Path

from orchestrator.analysis.answer import answer
from orchestrator.report.summary.cautions import cautions, remarks
from tests.report_rows import (
    METHODS,
    SMALL,
    failed,
    result_of,
    trial,
)


def test_methods_that_are_judged_on_fewer_images_are_named(tmp_path: Path) -> None:
    rows = [*SMALL, trial("policy_gradient", 0.89, 0.4, validation_images=400, reward_images=9600)]
    result = result_of(tmp_path, rows, methods=[*METHODS, "policy_gradient"])
    said = "\n".join(cautions(result))
    assert "10,000 validation images, those of policy_gradient over 400. At 0.900 one" in said
    assert "standard error is 0.3 to 1.5 points. So methods closer than about 0.8 to 4.3" in said
    assert "Too close to tell apart by 400 to 10,000 validation images: " in answer(result)[1]


def test_standard_errors_that_round_alike_are_said_once(tmp_path: Path) -> None:
    rows = [*SMALL, trial("policy_gradient", 0.89, 0.4, validation_images=8000, reward_images=2000)]
    result = result_of(tmp_path, rows, methods=[*METHODS, "policy_gradient"])
    said = "\n".join(cautions(result))
    assert "standard error is 0.3 points. So methods closer than about 0.8 to 0.9 points" in said


def test_missing_controls_are_said(tmp_path: Path) -> None:
    rows = [trial("l1_filter", 0.8, 0.5)]
    said = "\n".join(cautions(result_of(tmp_path, rows, methods=["l1_filter"])))
    for control in ("dense", "random_channels", "vanilla"):
        assert f"{control} is not in this sweep" in said


def test_a_fair_sweep_with_several_seeds_gets_no_caution_but_the_noise(tmp_path: Path) -> None:
    rows = [trial(method, 0.5, 0.5, seed=seed) for method in METHODS for seed in (0, 1)]
    (noise,) = cautions(result_of(tmp_path, rows))
    # (5000 + 2) / (10000 + 4) is a half, so the error is 50 points / sqrt(10004)
    assert noise.startswith("Accuracies are over 10,000 validation images. At 0.500 one standard")
    assert "error is 0.5 points. So methods closer than about 1.4 points" in noise


def test_unequal_tries_failures_and_machines_are_said(tmp_path: Path) -> None:
    elsewhere = trial("magnitude", 0.8, 1.0, device="cuda", threads=2)
    rows = [*SMALL, failed("magnitude", "OSError: x"), elsewhere]
    said = "\n".join(cautions(result_of(tmp_path, rows)))
    assert "1 of 11 trials failed" in said
    assert "vanilla 2, random_channels 2, l1_filter 3 and magnitude 3" in said
    assert "One seed" in said
    assert "cpu, 1 thread and cuda, 2 threads" in said


def test_zeros_that_stay_in_place_are_not_sold_as_savings(tmp_path: Path) -> None:
    said = remarks(result_of(tmp_path, SMALL))["nonzero_multiplications"]
    assert "magnitude leaves its zeros in place and removes no channel" in said
    assert "30 % of the dense network's multiplications have a weight that is not zero" in said
    assert "but 100 % ran, in 1.10 times the dense latency" in said
    assert "l1_filter" not in said


def test_latency_is_compared_with_the_dense_networks(tmp_path: Path) -> None:
    said = remarks(result_of(tmp_path, SMALL))["latency_ratio"]
    # 7 trials; their latencies over 10 ms: 0.3, 0.3, 0.35, 0.4, 0.55, 0.6, 0.6
    assert said.startswith("7 trials have at most half of the dense multiplications.")
    assert "median latency is 0.40 times the dense network's" in said
    assert "(0.30 to 0.60); none of them is slower" in said


def test_networks_that_decide_per_image_and_are_slower_than_dense_are_named(tmp_path: Path) -> None:
    costs = {"multiplications_p5": 3e7, "multiplications_p95": 5e7}
    batch = {"latency_ms_batch128": 90.0, "dense_latency_ms_batch128": 100.0}
    rows = [*SMALL, trial("rnp", 0.89, 0.4, latency_ms=13.0, **costs, **batch)]
    result = result_of(tmp_path, rows, methods=[*METHODS, "rnp"])
    assert (
        "rnp decides per image and is slower than the dense network here: 1.30 times its latency "
        "for one image (median of 1 trials)." in list(cautions(result))
    )
    assert "1.30 times the dense latency (0.90 at batch 128)" in answer(result)[1]
    assert (
        "It decides per image, which makes it slower than the dense network here"
        in (answer(result)[1])
    )
    same = {"multiplications_p5": 4e7, "multiplications_p95": 4e7}
    rows = [*SMALL, trial("thinet", 0.89, 0.4, latency_ms=13.0, **same)]
    assert "decides per image" not in "\n".join(cautions(result_of(tmp_path / "b", rows)))
