"""What a trial leaves beside its row is read back as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.run_folder.trial_files import (
    SHOWN,
    extremes,
    read_extremes,
    read_reports,
    write_extremes,
    write_reports,
)
from testbed.data import Images


def test_reports_are_read_back(tmp_path: Path) -> None:
    reports = [{"epoch": 0, "val_accuracy": 0.1 + 0.2}, {"round": 1, "sparsity": 0.5}]
    path = tmp_path / "reports" / "a.jsonl"
    write_reports(path, reports)
    assert read_reports(path) == reports
    assert read_reports(tmp_path / "none.jsonl") == []


def test_extremes_are_the_cheapest_and_the_dearest_in_order() -> None:
    assert extremes([3, 1, 2, 1]) == ([1, 3, 2, 0], [0, 2, 1, 3])
    cheapest, dearest = extremes(list(range(100)))
    assert cheapest == list(range(SHOWN)) and dearest == list(range(99, 99 - SHOWN, -1))


@pytest.mark.parametrize(("n", "channels"), [(30, 3), (30, 1), (4, 3)])
def test_the_picture_holds_the_extreme_images_themselves(
    tmp_path: Path, n: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, 5, 7), generator=generator, dtype=torch.uint8)
    costs = torch.randint(0, 9, (n,), generator=generator).tolist()
    path = tmp_path / "a.png"
    write_extremes(path, Images(pixels, torch.zeros(n)), costs)
    for places, pictures in zip(extremes(costs), read_extremes(path, n), strict=True):
        assert len(places) == len(pictures) == min(n, SHOWN)
        for place, picture in zip(places, pictures, strict=True):
            expected = pixels[place].permute(1, 2, 0).numpy().squeeze()
            np.testing.assert_array_equal(np.asarray(picture), expected)


def test_images_of_other_channels_are_not_drawn(tmp_path: Path) -> None:
    images = Images(torch.zeros(3, 2, 4, 4, dtype=torch.uint8), torch.zeros(3))
    write_extremes(tmp_path / "a.png", images, [1, 2, 3])
    assert not (tmp_path / "a.png").exists()
