"""How sure accuracies and their differences are."""

import math

import pandas as pd


def standard_error(accuracy: float, images: float) -> float:
    """Of an accuracy over so many images, in points; NaN where either is missing.

    With two right and two wrong images added, since the plain formula has no error at all where
    every image is right. Source: Agresti and Coull 1998, The American Statistician 52.
    """
    if pd.isna(accuracy) or pd.isna(images):
        return math.nan
    share = (accuracy * images + 2) / (images + 4)
    return 100 * math.sqrt(share * (1 - share) / (images + 4))


def error_over_seeds(one: pd.Series, other: pd.Series) -> float:
    """The standard error of the mean difference of two accuracies, in points; 0 for one seed.

    Args:
        one, other: accuracies by seed, of which those that both have count: methods met the same
            split of the images with each.
    """
    differences = (one - other).dropna()
    if len(differences) < 2:
        return 0.0
    return float(100 * differences.std() / math.sqrt(len(differences)))
