"""Programs of networks that decide per image, and for which none is written that skips."""

from pathlib import Path

import pytest
import tiny

from orchestrator.methods import method_class

QUICK = {"rnp_groups": {"steps": 20}, "network_routing": {"steps": 20}, "static_blocks": {}}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_gives_what_the_network_gives_and_says_that_it_skips_nothing(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from orchestrator.deploy.programs import write_programs

    model = tiny.trained("residual")
    network = method_class(name)(**QUICK[name]).prune(model, tiny.splits(), tiny.run(2))
    notes = write_programs(network, model, tiny.splits(), tmp_path)  # checks what they give
    assert {"model.onnx", "model.pt2"} <= {path.name for path in tmp_path.iterdir()}
    assert all(("skips nothing" in note) == (name != "static_blocks") for note in notes)
