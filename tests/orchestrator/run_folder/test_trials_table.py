"""trials.csv: every value comes back as it went in, and a crash costs one row at most."""

import csv
import math
import random
import struct
from pathlib import Path

import pandas as pd
import pytest
from pydantic import BaseModel

from orchestrator.run_folder.trials_table import (
    COLUMNS,
    TrialsTable,
    append_multiplications_per_class,
    keep_rows,
    read_trials,
    table_columns,
    write_images,
    write_table,
)


class Thinning(BaseModel):
    keep_ratio: float = 0.5
    rounds: int = 1
    masked: bool = True
    layers: str = "all"


HEADER = table_columns({"dense": BaseModel, "thin": Thinning}, ["training.learning_rate"])


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def table(tmp_path: Path) -> TrialsTable:
    return TrialsTable(tmp_path / "trials.csv", HEADER)


def test_the_header_is_the_issues_columns_then_ours_then_the_options() -> None:
    issue = (
        "trial_id,phase,confirms,method,dataset,backbone,depth,dropout,seed,status,train_accuracy,"
        "val_accuracy,val_accuracy_before_finetuning,test_accuracy,multiplications,"
        "multiplications_p5,multiplications_p50,multiplications_p95,dense_multiplications,"
        "nonzero_multiplications,parameters,sparsity,latency_ms,latency_ms_batch128,"
        "dense_latency_ms,dense_latency_ms_batch128,duration_s,error,"
    )
    assert ",".join(HEADER).startswith(issue)
    assert HEADER[len(COLUMNS) :] == (
        "thin.keep_ratio",
        "thin.rounds",
        "thin.masked",
        "thin.layers",
        "training.learning_rate",
    )


def test_rows_come_back_with_their_values_and_types(table: TrialsTable) -> None:
    table.append(
        {
            "trial_id": "thin-s0-000",
            "method": "thin",
            "depth": 4,
            "dropout": 0.1,
            "status": "completed",
            "val_accuracy": 0.1 + 0.2,
            "parameters": 10**12,
            "thin.keep_ratio": 1.0,
            "thin.rounds": 3,
            "thin.masked": False,
            "thin.layers": "None",
        }
    )
    table.append({"trial_id": "dense-s0", "method": "dense", "error": None})
    frame = table.read()
    first, second = frame.iloc[0], frame.iloc[1]
    assert first["val_accuracy"] == 0.1 + 0.2
    assert first["parameters"] == 10**12
    assert first["depth"] == 4
    assert list(frame["thin.masked"].dropna()) == [False]
    assert first["thin.layers"] == "None"
    assert {c: str(frame[c].dtype) for c in COLUMNS} == COLUMNS
    assert str(frame["thin.rounds"].dtype) == "Int64"
    assert str(frame["thin.keep_ratio"].dtype) == "float64"
    assert str(frame["thin.masked"].dtype) == "boolean"
    for column in ("depth", "val_accuracy", "error", "thin.rounds", "thin.layers"):
        assert pd.isna(second[column])


def test_every_digit_of_a_float_comes_back(table: TrialsTable) -> None:
    rng = random.Random(0)
    (*doubles,) = struct.unpack("2000d", rng.randbytes(16_000))
    doubles = [value for value in doubles if math.isfinite(value)] + [rng.random() for _ in "x" * 9]
    for value in doubles:
        table.append({"trial_id": "t", "val_accuracy": value, "thin.keep_ratio": value})
    frame = table.read()
    assert list(frame["val_accuracy"]) == doubles
    assert list(frame["thin.keep_ratio"]) == doubles


@pytest.mark.parametrize(
    "error",
    [
        'RuntimeError: expected "a, b"\n  File "x.py", line 3\n    f(\'{"k": 1}\')\n',
        "one\r\ntwo\rthree",
        '"',
        "\n\n",
        "a,b,,",
        "größer — 大\u2028neu",
        "long " * 50_000,
    ],
)
def test_error_text_survives(table: TrialsTable, error: str) -> None:
    table.append({"trial_id": "before"})
    table.append({"trial_id": "broken", "error": error})
    table.append({"trial_id": "after"})
    frame = table.read()
    assert list(frame["trial_id"]) == ["before", "broken", "after"]
    assert frame["error"][1] == error


def test_a_file_cut_at_any_byte_reads_as_the_rows_before_the_cut(table: TrialsTable) -> None:
    header = table.path.stat().st_size
    ends = []
    for number in range(3):
        table.append({"trial_id": f"ü{number}", "error": f'line\n"{number}", ü\n'})
        ends.append(table.path.stat().st_size)
    whole = table.path.read_bytes()
    for cut in range(header, len(whole) + 1):
        table.path.write_bytes(whole[:cut])
        expected = [f"ü{number}" for number, end in enumerate(ends) if end <= cut]
        assert list(table.read()["trial_id"]) == expected


def test_going_on_with_a_file_cuts_the_unfinished_row_off(table: TrialsTable) -> None:
    table.append({"trial_id": "whole"})
    with table.path.open("a") as file:
        file.write('half,"search')
    again = TrialsTable(table.path, HEADER)
    again.append({"trial_id": "next"})
    assert list(again.read()["trial_id"]) == ["whole", "next"]


def test_going_on_with_more_columns_adds_them_and_keeps_every_cell(table: TrialsTable) -> None:
    table.append({"trial_id": "t", "error": 'a\n"b",', "thin.rounds": 3})
    methods = {"new": Thinning, "dense": BaseModel}  # thin.* is gone, new.* comes
    again = TrialsTable(table.path, table_columns(methods))
    again.append({"trial_id": "u", "new.rounds": 2})
    frame = again.read().set_index("trial_id")
    assert set(frame.columns) == {*HEADER, "new.keep_ratio", "new.rounds", "new.masked",
                                  "new.layers"} - {"trial_id"}  # fmt: skip
    assert frame.loc["t", "error"] == 'a\n"b",'
    assert frame.loc["t", "thin.rounds"] == 3
    assert pd.isna(frame.loc["t", "new.rounds"])
    assert frame.loc["u", "new.rounds"] == 2


def test_rows_are_taken_out_and_the_others_stay_as_they_are(table: TrialsTable) -> None:
    for number, status in enumerate(("completed", "stopped", "completed", "failed")):
        table.append({"trial_id": f"t{number}", "status": status, "error": f'"{number}\n'})
    before = cells(table.path)
    keep_rows(table.path, "status", lambda status: status != "stopped")
    assert cells(table.path) == [row for row in before if "stopped" not in row]
    for _ in range(2):  # the second time there is none left
        keep_rows(table.path, "status", lambda status: False)
        assert cells(table.path) == before[:1]


def test_a_row_that_is_damaged_is_named(table: TrialsTable) -> None:
    table.append({"trial_id": "t0"})
    with table.path.open("a") as file:
        file.write("t1,search\n")
    table.append({"trial_id": "t2"})
    with pytest.raises(ValueError, match=r"trials\.csv, row 2: damaged, expected \d+ cells, got 2"):
        table.read()


def test_a_column_the_table_lacks_is_an_error(table: TrialsTable) -> None:
    with pytest.raises(ValueError, match=r"trials\.csv has no column accuracy, flops"):
        table.append({"trial_id": "t", "flops": 1, "accuracy": 1})


def test_cells_are_filled_and_nothing_else_changes(table: TrialsTable) -> None:
    for number in range(4):
        table.append({"trial_id": f"t{number}", "sparsity": 1 / 3, "error": 'a\n"b",'})
    before = cells(table.path)
    table.fill({"t1": {"test_accuracy": 0.75}, "t3": {"test_accuracy": 0.5}})
    after = cells(table.path)
    assert list(table.read()["test_accuracy"].fillna(-1)) == [-1, 0.75, -1, 0.5]
    column = HEADER.index("test_accuracy")
    blank = [[*row[:column], *row[column + 1 :]] for row in after]
    assert blank == [[*row[:column], *row[column + 1 :]] for row in before]
    with pytest.raises(ValueError, match="has no trial t9"):
        table.fill({"t9": {"test_accuracy": 1.0}})


def test_appending_writes_only_the_new_row(table: TrialsTable) -> None:
    """Cost per row does not grow: what was written before is untouched, on the same inode."""
    inode = table.path.stat().st_ino
    rng = random.Random(0)
    for number in range(50):
        before = table.path.read_bytes()
        table.append({"trial_id": f"t{number}", "val_accuracy": rng.random()})
        assert table.path.read_bytes().startswith(before)
    assert table.path.stat().st_ino == inode
    assert len(table.read()) == 50


def test_a_table_without_rows_reads_as_empty_with_types(table: TrialsTable) -> None:
    frame = table.read()
    assert len(frame) == 0
    assert {c: str(frame[c].dtype) for c in COLUMNS} == COLUMNS


def test_columns_a_file_lacks_are_added_empty(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text("trial_id,val_accuracy\na,0.5\n")
    frame = read_trials(path)
    assert frame["multiplications"].isna().all()
    assert {c: str(frame[c].dtype) for c in COLUMNS} == COLUMNS


def test_a_table_written_whole_reads_back_the_same(table: TrialsTable, tmp_path: Path) -> None:
    table.append({"trial_id": "a", "thin.rounds": 2, "val_accuracy": 0.3, "error": "x\ny"})
    table.append({"trial_id": "b", "thin.masked": True})
    frame = table.read()
    write_table(frame, tmp_path / "copy.csv")
    pd.testing.assert_frame_equal(read_trials(tmp_path / "copy.csv"), frame)
    assert (tmp_path / "copy.csv").read_bytes() == table.path.read_bytes()


def test_multiplications_per_class_gets_a_row_per_class_and_layer(tmp_path: Path) -> None:
    path = tmp_path / "multiplications_per_class.csv"
    append_multiplications_per_class(path, "t0", {"cat": {"conv1": 3.0, "conv2": 4.5}})
    append_multiplications_per_class(path, "t1", {"dog, big": {"conv1": 1.0}})
    assert cells(path) == [
        ["trial_id", "class", "layer", "multiplications"],
        ["t0", "cat", "conv1", "3.0"],
        ["t0", "cat", "conv2", "4.5"],
        ["t1", "dog, big", "conv1", "1.0"],
    ]


def test_images_get_a_row_each(tmp_path: Path) -> None:
    write_images(tmp_path, "t0", ["cat", "dog"], [True, False], [10, 20])
    assert (tmp_path / "images" / "t0.csv").read_text() == (
        "index,class,correct,multiplications\n0,cat,true,10\n1,dog,false,20\n"
    )
    with pytest.raises(ValueError):
        write_images(tmp_path, "t0", ["cat"], [True, False], [10, 20])
