"""A cascade as programs that others can run."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from small_cascades import cascade

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from orchestrator.deploy.programs import write_programs  # noqa: E402 - needs the extra


def test_a_cascade_is_written_for_single_images_and_for_batches(tmp_path: Path) -> None:
    network, data = cascade(mirror=False), tiny.splits()
    notes = write_programs(network, tiny.network("conv"), data, tmp_path)
    inputs = data.normalised(data.validation)[:]
    with torch.no_grad():
        expected = network(inputs).numpy()
    pixels = (data.validation.pixels.float() / 255).numpy()
    for name, batches in (("model.onnx", np.split(pixels, 48)), ("model_batch.onnx", [pixels])):
        session = onnxruntime.InferenceSession(tmp_path / name)
        found = [session.run(["logits"], {"images": batch})[0] for batch in batches]
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-3, atol=1e-3)
    program = torch.export.load(tmp_path / "model.pt2").module()
    found = program(torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    single, batch, whole = notes
    assert single.startswith("model.onnx: single images; it skips. One image: ")
    assert "any batch; it skips. 128 images: " in batch
    for said in (single, batch):
        assert "with its own decisions" in said and "with the dearest" in said
        assert "times the dense network's" in said
    assert "skips nothing" in whole


def test_a_cascade_at_random_is_a_program_of_torch_alone(tmp_path: Path) -> None:
    network, data = cascade("drawn"), tiny.splits()
    notes = write_programs(network, tiny.network("conv"), data, tmp_path)
    assert "not written" in notes[0] and not (tmp_path / "model.onnx").exists()
    program = torch.export.load(tmp_path / "model.pt2").module()
    pixels = data.validation.pixels.float() / 255
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (data.mean, data.std))
    with torch.no_grad():
        expected = network((pixels - mean) / std)
    torch.testing.assert_close(program(pixels), expected, rtol=1e-3, atol=1e-3)
