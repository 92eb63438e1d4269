from pathlib import Path

import pytest

from testbed.names import import_object, unknown


def test_an_unknown_name_gets_the_nearest_known_one_and_all_choices() -> None:
    message = unknown("method", "thinnet", ["thinet", "dense"])
    assert message == "unknown method 'thinnet'. Did you mean 'thinet'? Known: dense, thinet."


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert unknown("method", "zzz", ["dense"]) == "unknown method 'zzz'. Known: dense."


def test_a_reference_imports_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "classy_nets.py").write_text("class Nets:\n    small = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_object("classy_nets:Nets.small") == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("named_nets", "Expected a name like 'package.module:object', got 'named_nets'"),
        ("named_nets:", "Expected a name like"),
        ("named_netz:small", "no module 'named_netz'"),
        ("named_nets.deeper:small", "no module 'named_nets.deeper'"),
        ("named_nets:smal", "unknown object 'smal'. Did you mean 'small'?"),
        ("broken_nets:small", "'broken_nets' raised ZeroDivisionError"),
    ],
)
def test_a_reference_that_leads_nowhere_says_why(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_nets.py").write_text("small = 3\n")
    (tmp_path / "broken_nets.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as raised:
        import_object(reference)
    assert message in str(raised.value)
