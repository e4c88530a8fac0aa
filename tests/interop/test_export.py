from dataclasses import replace

import pytest

from unveil.errors import UnveilError
from unveil.interop import mae_release, model_files, timm_vit
from unveil.interop.load import load
from unveil.recipes.export import DEFAULT_NAMES, export


@pytest.mark.parametrize("to", DEFAULT_NAMES)
def test_each_format_is_written_and_checked(make_mae, tmp_path, logged, to):
    model_files.save(make_mae(width=192, depth=1, decoder_heads=2), tmp_path / "run")
    out = export(tmp_path / "run", to=to, say=logged)
    assert out == tmp_path / "run" / "export" / DEFAULT_NAMES[to]
    assert "agrees on the " in logged[-1]
    assert "of image files, largest difference" in logged[-1]
    beside = {"onnx": ["config.json"], "mae": ["mae.pth.json"]}.get(to, [])
    card = [] if out.is_dir() else [f"{out.stem}.md"]
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([*beside, *card, out.name])  # nothing temporary is left
    with pytest.raises(UnveilError, match="exists, and is not overwritten"):
        export(tmp_path / "run", to=to, say=logged)


@pytest.mark.parametrize("to", DEFAULT_NAMES)
def test_fine_tuned_models_go_out_with_their_classes(make_finetune, tmp_path, logged, to):
    model_files.save(make_finetune(["cat", "dog", "cow"]), tmp_path / "run")
    out = export(tmp_path / "run", to=to, out=tmp_path / "out", say=logged)
    assert "agrees" in logged[-1]
    if to == "safetensors":
        assert model_files.config_of(out)["classes"] == ["cat", "dog", "cow"]


@pytest.mark.parametrize("to", DEFAULT_NAMES)
def test_encoders_without_decoder_go_out(make_mae, tmp_path, logged, to):
    model_files.save(make_mae(), tmp_path)
    out = export(tmp_path / "encoder.safetensors", to=to, say=logged)
    assert out == tmp_path / "encoder-export" / DEFAULT_NAMES[to]
    assert "agrees" in logged[-1]


def test_rectangle_goes_to_the_mae_release(make_mae, tmp_path, logged):
    model_files.save(make_mae(image_size=(16, 48)), tmp_path)
    out = export(tmp_path, to="mae", say=logged)
    again = load(out, heads=3, decoder_heads=2, image_size=(16, 48))
    assert again.encoder.config.grid == (2, 6)


def test_release_goes_out_for_timm(make_mae, tmp_path, logged):
    mae_release.export(make_mae(width=192, decoder_width=192, decoder_heads=3), tmp_path / "release.pth")
    assert export(tmp_path / "release.pth", to="timm", say=logged) == tmp_path / "release-export" / "timm"


def test_disagreement_keeps_nothing(make_mae, tmp_path, logged, monkeypatch):
    model_files.save(make_mae(), tmp_path / "run")
    written = timm_vit.config_json
    monkeypatch.setattr(timm_vit, "config_json", lambda vit, model: written(replace(vit, heads=2), model))
    with pytest.raises(UnveilError, match=r"timm disagrees by .* on the features and tokens of image files: nothing was kept"):
        export(tmp_path / "run", to="timm", out=tmp_path / "out" / "timm", say=logged)
    assert list((tmp_path / "out").iterdir()) == []


def test_format_that_cannot_express_it_keeps_nothing(make_finetune, tmp_path, logged):
    model_files.save(make_finetune(), tmp_path / "run")
    with pytest.raises(UnveilError, match="no final norm"):
        export(tmp_path / "run" / "encoder.safetensors", to="mae", out=tmp_path / "out.pth", say=logged)
    with pytest.raises(UnveilError, match="no format 'gguf'"):
        export(tmp_path / "run", to="gguf", say=logged)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
