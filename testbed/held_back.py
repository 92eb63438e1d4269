"""Division of the validation images: those that a method chooses by, and those it is judged on."""

from dataclasses import replace

import numpy as np
import torch

from testbed.data import Images, Splits
from testbed.stratified import draw

STREAM = 2  # keeps this draw apart from others


def divided(data: Splits, share: float, option: str) -> tuple[Images, Splits]:
    """The validation images to choose by, and the data with the others as validation images.

    Which is which depends on the labels and the share alone; each class is divided by the share.

    Args:
        option: that the share is of, for the error.

    Raises:
        ValueError: if a part would be empty.
    """
    images = data.validation
    n_chosen_by = round(share * len(images))
    if not 0 < n_chosen_by < len(images):
        raise ValueError(
            f"{option} {share:g} takes {n_chosen_by} of {len(images)} validation images; "
            "expected one at least, and one left to judge by. Take a larger data.validation_share."
        )
    chosen_by = draw(images.labels.cpu().numpy(), n_chosen_by, np.random.default_rng(STREAM))
    mask = torch.from_numpy(chosen_by)
    parts = (part.nonzero().flatten().to(images.labels.device) for part in (mask, ~mask))
    own, others = (images.select(places) for places in parts)
    return own, replace(data, validation=others)
