"""How sure accuracies and their differences are.

Intervals over seeds are Student's (Student 1908, Biometrika 6), of 95 %: with few seeds they are
wide, and they hold the mean of all seeds in 95 of 100 sweeps from two seeds up.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
FEW_SEEDS = 5  # below it what each seed came to is shown beside an interval


def standard_error(accuracy: float, images: float) -> float:
    """Of an accuracy over so many images, in points; NaN where either is missing.

    With two right and two wrong images added, since the plain formula has no error at all where
    every image is right. Source: Agresti and Coull 1998, The American Statistician 52.
    """
    if pd.isna(accuracy) or pd.isna(images):
        return math.nan
    share = (accuracy * images + 2) / (images + 4)
    return 100 * math.sqrt(share * (1 - share) / (images + 4))


def paired_error(one: np.ndarray, other: np.ndarray) -> float:
    """Standard error of the difference of two accuracies on the same images, in points.

    With half an image added to each of the four outcomes, since the plain formula (McNemar's) has
    no error at all where the two never differ. Source: Agresti and Min 2005, Statistics in
    Medicine 24.

    Args:
        one, other: (n,) bool, which images each classifies right.
    """
    ahead, behind = (float((a & ~b).sum()) + 0.5 for a, b in ((one, other), (other, one)))
    n = len(one) + 2
    return 100 * math.sqrt(ahead + behind - (ahead - behind) ** 2 / n) / n


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The interval of the mean over seeds, from a value of each; NaN for fewer than two."""
    each = np.asarray(values, dtype=float)
    if len(each) < 2:
        return math.nan, math.nan
    margin = _quantile(len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each))
    return float(each.mean() - margin), float(each.mean() + margin)


def margin_over_seeds(one: pd.Series, other: pd.Series) -> float:
    """Half of the interval of the mean difference of two accuracies, in points; 0 for one seed.

    Args:
        one, other: accuracies by seed. Where two seeds or more have both, these count, in pairs:
            methods met the same split of the images with each. Else the difference is one of
            independent means. Source: Welch 1947, Biometrika 34.
    """
    differences = (one - other).dropna()
    if len(differences) >= 2:
        low, high = t_interval(differences.to_numpy())
        return 50 * (high - low)
    if min(len(one), len(other)) < 2:
        return 0.0
    squares = [each.var() / len(each) for each in (one, other)]
    if sum(squares) == 0:
        return 0.0
    freedom = sum(squares) ** 2 / sum(
        square**2 / (len(each) - 1) for square, each in zip(squares, (one, other), strict=True)
    )
    return float(100 * _quantile(freedom) * math.sqrt(sum(squares)))


def _quantile(freedom: float) -> float:
    """Of Student's t, beyond which lies half of what the interval leaves out."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
