import importlib.util

import pytest
import torch

from unveil.errors import UnveilError
from unveil.interop import onnx_graph

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def outputs(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), session.get_outputs()[0].name


@needs_onnx
@torch.no_grad()
def test_encoder_answers_any_batch(make_mae, tmp_path, capfd):
    learner = make_mae(image_size=(16, 24))
    path = onnx_graph.export(learner, tmp_path / "folder" / "encoder.onnx")
    assert capfd.readouterr() == ("", "")
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 24)
        tokens, name = outputs(path, images)
        assert name == "tokens"
        assert (tokens - learner.encoder(images)).abs().max() < 1e-4
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.json", "encoder.onnx"]


@needs_onnx
@torch.no_grad()
def test_fine_tuned_model_answers_with_scores_and_large_weights_stand_beside(make_finetune, tmp_path, images, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 1000)
    learner = make_finetune()
    path = onnx_graph.export(learner, tmp_path / "classifier.onnx")
    scores, name = outputs(path, images[:1])
    assert name == "scores"
    assert (scores - learner.logits(images[:1])).abs().max() < 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["classifier.onnx", "classifier.onnx.data", "config.json"]


def test_absent_extra_is_named(make_mae, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnveilError, match=r"unveil\[onnx\]"):
        onnx_graph.export(make_mae(), tmp_path / "x.onnx")
