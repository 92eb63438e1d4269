"""Programs of networks that decide per image about groups or blocks, and of those that do not."""

from pathlib import Path

import pytest
import tiny

from orchestrator.methods import method_class

QUICK = {"rnp_groups": {"steps": 20}, "network_routing": {"steps": 20}, "static_blocks": {}}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_give_what_the_network_gives_and_say_which_of_them_skip(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from orchestrator.deploy.programs import write_programs

    model = tiny.trained("residual")
    network = method_class(name)(**QUICK[name]).prune(model, tiny.splits(), tiny.run(2))
    notes = write_programs(network, model, tiny.splits(), tmp_path)  # checks what they give
    fixed = name == "static_blocks"
    files = {"model.pt2", "model.onnx"} | (set() if fixed else {"model_batch.onnx"})
    assert {path.name for path in tmp_path.iterdir()} == files
    skips = {note.partition(":")[0]: "it skips." in note for note in notes}
    assert skips == {file: not fixed and file.endswith("onnx") for file in files}
    assert ("skips nothing" in notes[-1]) == (not fixed)
