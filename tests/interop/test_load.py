import json

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.load import load


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("photo.jpg", b"\xff\xd8\xff\xe0", "file of another kind: expected a run folder"),
        ("empty.pth", b"", "file of another kind"),
        ("notes.txt", b"just some words that are long enough", "file of another kind"),
        ("cut.pth", b"PK\x03\x04 and then nothing", "cannot be read as plain tensors"),
        ("cut.safetensors", b"\x40\x00\x00\x00\x00\x00\x00\x00{", "damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnveilError, match=match) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused_in_one_line(tmp_path):
    def refused(match):
        with pytest.raises(UnveilError, match=match):
            load(tmp_path)

    with pytest.raises(UnveilError, match=r"nowhere does not exist: expected"):
        load(tmp_path / "nowhere")
    refused("a folder without config.json: expected")
    (tmp_path / "run.json").write_text("{}")
    refused("has not started to train")
    for content, match in (
        ('{"model_type": "roberta"}', "config.json of roberta: expected"),
        ("{}", "of no known format"),
        ("[1]", "holds a JSON list"),
        ("{", "not valid JSON"),
    ):
        (tmp_path / "config.json").write_text(content)
        refused(match)
    (tmp_path / "config.json").write_text(json.dumps({"format": "unveil", "encoder": {}, "task": "linear"}))
    refused("has no weights yet")


def test_other_tensors_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UnveilError, match="not in the layout of the public MAE release"):
        load(tmp_path / "x.safetensors")


def test_options_that_the_path_records_are_refused(make_mae, tmp_path):
    model_files.save(make_mae(), tmp_path)
    with pytest.raises(UnveilError, match="records its own heads and target: do not pass them"):
        load(tmp_path, heads=3, target="pixel")
