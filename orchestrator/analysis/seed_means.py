"""Means over seeds: options that several seeds ran, and confirmed points of the Pareto fronts."""

import pandas as pd

from orchestrator.analysis.pareto import DENSE_COST, LATENCY_RATIOS, TRADE, eligible, with_ratios

KNOWN_OF_ALL = ["train_accuracy", "share", *DENSE_COST, *LATENCY_RATIOS]


def repeated(trials: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of each method's options in each cell that completed with several.

    By cell, method and multiplications. Columns: cell, method and options; trial_id, the first of
    them; n, the seeds, and tried, with those whose trials failed or were stopped; means over the n
    of val_accuracy, train_accuracy, share (multiplications over the dense network's), the costs and
    both latencies over the dense network's;
    tested, the seeds whose networks met the test images, and the mean test_accuracy of these;
    val_deviation and test_deviation, sample standard deviations, the latter missing where tested is
    less than 2; by_seed, the n validation accuracies. Another figure that a seed lacks is missing.
    Of several tries of one seed the first counts.
    """
    completed = eligible(trials, TRADE)
    options = ["cell", "method", *(name for name in map(str, completed.columns) if "." in name)]
    once = completed.drop_duplicates([*options, "seed"])
    once = once.sort_values("seed", kind="stable")
    once = with_ratios(once)
    once = once.assign(**once[KNOWN_OF_ALL].astype(float))
    alike = once.groupby(options, sort=False, dropna=False)
    points = alike.agg(
        trial_id=("trial_id", "first"),
        n=("seed", "size"),
        val_accuracy=("val_accuracy", "mean"),
        val_deviation=("val_accuracy", "std"),
        by_seed=("val_accuracy", tuple),
        tested=("test_accuracy", "count"),
        test_accuracy=("test_accuracy", "mean"),
        test_deviation=("test_accuracy", "std"),
    )
    figures = alike[KNOWN_OF_ALL]
    points[KNOWN_OF_ALL] = figures.mean().where(figures.count().eq(points["n"], axis=0))
    searched = trials[trials["phase"] == "search"].drop_duplicates([*options, "seed"])
    points["tried"] = searched.groupby(options, dropna=False).size()
    points = points[points["n"] > 1].reset_index()
    return points.sort_values(["cell", "method", "multiplications"], ignore_index=True)


def all_repeated(trials: pd.DataFrame, points: pd.DataFrame, cost: str) -> bool:
    """Whether means over seeds stand for every trial of the search, and none failed or was stopped.

    Args:
        points: of `repeated`.
        cost: a column of theirs that all of them must have.
    """
    known = points[points[cost].notna()]
    return not known.empty and int(known["n"].sum()) == int((trials["phase"] == "search").sum())


def confirmed(trials: pd.DataFrame) -> pd.DataFrame:
    """Confirmed points, by cell, method and cost.

    Columns: trial_id (the search's trial), cell, method; n, the fresh seeds whose networks met the
    test images; means over these of test_accuracy, val_accuracy, multiplications (of the test
    images), share (of the dense network's), latency_ms and both latencies over the dense network's;
    test_deviation, the sample standard
    deviation, missing where n is 1; by_seed, the n test accuracies; test_images;
    search_val_accuracy, by which the search chose it.
    """
    again = trials[(trials["phase"] == "confirmation") & trials["test_accuracy"].notna()]
    again = again.sort_values("seed", kind="stable")
    again = with_ratios(again.assign(multiplications=again["test_multiplications"]))
    points = again.groupby("confirms", sort=False).agg(
        cell=("cell", "first"),
        method=("method", "first"),
        n=("seed", "size"),
        test_accuracy=("test_accuracy", "mean"),
        test_deviation=("test_accuracy", "std"),
        by_seed=("test_accuracy", tuple),
        test_images=("test_images", "max"),
        val_accuracy=("val_accuracy", "mean"),
        multiplications=("multiplications", "mean"),
        share=("share", "mean"),
        latency_ms=("latency_ms", "mean"),
        **{ratio: (ratio, "mean") for ratio in LATENCY_RATIOS},
    )
    searched = trials.set_index("trial_id")["val_accuracy"].rename("search_val_accuracy")
    points = points.join(searched, how="inner").rename_axis("trial_id").reset_index()
    return points.sort_values(["cell", "method", "multiplications"], ignore_index=True)
