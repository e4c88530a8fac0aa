import pytest
import torch

from unveil.errors import UnveilError
from unveil.interop import mae_release
from unveil.interop import model_files as native
from unveil.interop import verify_export as agreement
from unveil.interop.load import load
from unveil.recipes.export import NAMES, export


@pytest.mark.parametrize("to", NAMES)
def test_each_format_is_written_and_checked(make_mae, tmp_path, said, to):
    native.save(make_mae(width=192, depth=1, decoder_heads=2), tmp_path / "run")
    out = export(tmp_path / "run", to=to, say=said)
    assert out == tmp_path / "run" / "export" / NAMES[to]
    assert "agrees on random images" in said[-1]
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # nothing temporary is left
    with pytest.raises(UnveilError, match="exists, and nothing is overwritten"):
        export(tmp_path / "run", to=to, say=said)


@pytest.mark.parametrize("to", ["timm", "safetensors", "onnx"])
def test_fine_tuned_models_go_out_with_their_classes(make_finetune, tmp_path, said, to):
    native.save(make_finetune(3), tmp_path / "run", classes=["cat", "dog", "cow"])
    out = export(tmp_path / "run", to=to, out=tmp_path / "out", say=said)
    assert "agrees" in said[-1]
    if to == "safetensors":
        assert native.config_of(out)["classes"] == ["cat", "dog", "cow"]


@pytest.mark.parametrize("to", NAMES)
def test_encoders_without_decoder_go_out(make_mae, tmp_path, said, to):
    native.save(make_mae(), tmp_path)
    out = export(tmp_path / "encoder.safetensors", to=to, say=said)
    assert out == tmp_path / "encoder-export" / NAMES[to]
    assert "agrees" in said[-1]


def test_rectangle_goes_to_the_mae_release(make_mae, tmp_path, said):
    native.save(make_mae(image_size=(16, 48)), tmp_path)
    out = export(tmp_path, to="mae", say=said)
    again = load(out, heads=3, decoder_heads=2, image_size=(16, 48))
    assert again.encoder.config.grid == (2, 6)


def test_release_goes_out_for_timm(make_mae, tmp_path, said):
    mae_release.export(make_mae(width=192, decoder_width=192, decoder_heads=3), tmp_path / "release.pth")
    assert export(tmp_path / "release.pth", to="timm", say=said) == tmp_path / "release-export" / "timm"


def test_disagreement_keeps_nothing(make_mae, tmp_path, said, monkeypatch):
    native.save(make_mae(), tmp_path / "run")
    monkeypatch.setattr(agreement, "ask_timm", lambda folder, images, scores: torch.zeros(2, 17, 48))
    with pytest.raises(UnveilError, match="timm disagrees by 1"):
        export(tmp_path / "run", to="timm", out=tmp_path / "out" / "timm", say=said)
    assert list((tmp_path / "out").iterdir()) == []


def test_format_that_cannot_express_it_keeps_nothing(make_finetune, tmp_path, said):
    native.save(make_finetune(), tmp_path / "run")
    with pytest.raises(UnveilError, match="no masked autoencoder"):
        export(tmp_path / "run", to="mae", out=tmp_path / "out.pth", say=said)
    with pytest.raises(UnveilError, match="no format 'gguf'"):
        export(tmp_path / "run", to="gguf", say=said)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
