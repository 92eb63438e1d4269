import json
import sys
from pathlib import Path

import pytest

from benchmarks import peers
from testbed.cost import count_parameters

NETWORK = peers.QUICK.networks[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of one quick run on a machine without Model Optimizer."""
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "modelopt", None)  # so that importing it fails
        patch.delitem(sys.modules, "benchmarks.peer_methods.fastnas", raising=False)
        peers.compare((NETWORK, 0), peers.QUICK, folder, folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, peers.Row]:
    return {row["method"]: row for row in peers.read(peers.QUICK, folder)}


def test_every_method_leaves_at_most_half_of_the_same_dense_network(
    rows: dict[str, peers.Row],
) -> None:
    assert list(rows) == ["dense", *peers.OURS, *peers.PEERS]
    for method in [*peers.OURS, *peers.PEERS]:
        if method != "FastNAS":
            assert 0.4 < rows[method]["share"] <= peers.SHARE
            assert rows[method]["multiplications"] < rows["dense"]["multiplications"]
            assert rows[method]["epochs"] == peers.QUICK.fine_tuning.epochs


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(
    rows: dict[str, peers.Row],
) -> None:
    assert "modelopt" in rows["FastNAS"]["reason"]
    line = next(
        line
        for line in peers.as_markdown(list(rows.values()), peers.QUICK).splitlines()
        if line.startswith("| FastNAS")
    )
    assert "skipped: " in line and "modelopt" in line and line.count("|") == 9


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    file = peers.row_file(folder, NETWORK, "thinet, all groups", 0)
    row = json.loads(file.read_text())
    file.write_text(json.dumps({**row, "val_accuracy": 0.123}))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    peers.compare((NETWORK, 0), peers.QUICK, folder, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_judging_images_are_not_among_those_that_methods_see(tmp_path: Path) -> None:
    data, judging = peers.QUICK.splits(tmp_path, seed=0)
    assert len(data.train) + len(data.validation) + len(judging) == 400 + 100 + 200
    seen = {
        image.numpy().tobytes() for part in (data.train, data.validation) for image in part.pixels
    }
    judged = [image.numpy().tobytes() for image in judging.pixels]
    assert sum(image in seen for image in judged) <= 1  # of the digits, two may be alike


def test_fine_tuning_is_no_part_of_the_seconds_to_prune(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = iter([0.0, 10.0, 110.0, 113.0])  # begun, fine-tuning from 10 to 110, ended
    monkeypatch.setattr(peers.time, "process_time", lambda: next(clock))
    data, judging = peers.QUICK.splits(tmp_path, seed=0)
    dense = peers.built(NETWORK, peers.QUICK, data, seed=0)
    row = peers.pruned_by(
        peers.OURS["l1_filter, all groups"], dense, peers.QUICK, data, judging, seed=0
    )
    assert row["seconds_to_prune"] == 13
    assert row["training_seconds"] == 100
    assert row["parameters"] < count_parameters(dense)


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    row = {"network": NETWORK, "method": "FastNAS", "share": 0.5, "multiplications": 2_000_000}
    row |= {"parameters": 3000, "seconds_to_prune": 1.5, "epochs": 3, "training_seconds": 20.0}
    rows = [{**row, "seed": seed, "val_accuracy": 0.7 + seed / 50} for seed in (0, 1)]
    assert (
        "| FastNAS | 71.0 ± 1.4 | 2.00 M (50.0 %) | 3 k | 1.50 | 3 | 20 | 2 |"
        in peers.as_markdown(rows, peers.QUICK).splitlines()
    )


@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_fastnas_meets_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("modelopt")
    data, judging = peers.QUICK.splits(tmp_path, seed=0)
    dense = peers.built(NETWORK, peers.QUICK, data, seed=0)
    row = peers.pruned_by(peers.PEERS["FastNAS"], dense, peers.QUICK, data, judging, seed=0)
    assert row.get("share", 1) <= peers.SHARE, row


def test_rows_of_other_settings_are_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "setting.txt").write_text(str(peers.FULL))
    with pytest.raises(SystemExit):
        peers.main(["--quick", "--output", str(tmp_path)])
    assert "Give another --output" in capsys.readouterr().err
