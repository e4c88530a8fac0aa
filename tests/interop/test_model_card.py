"""Model cards, and uploads to a stand-in for the Hugging Face Hub."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from PIL import Image

import unveil
from tests.interop.hub import TOKEN, running_hub
from unveil.errors import UnveilError
from unveil.interop import hub as hub_module
from unveil.interop import model_files
from unveil.recipes.export import export
from unveil.reports.model_card import data_lines, escaped, licence_lines, without_folders
from unveil.reports.table import ResultTable

pytestmark = pytest.mark.usefixtures("without_reports")

AWKWARD = ["cat, dog", "Grün|rot", "<b>1</b>", "`x`"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining run on a folder of images in four classes with awkward names, and a run that was fine-tuned from it."""
    root = tmp_path_factory.mktemp("secret-place")
    draw = np.random.default_rng(0)
    for i, name in enumerate(AWKWARD):
        folder = root / "my photos" / name.replace("/", "_")
        folder.mkdir(parents=True)
        for k in range(10):
            pixels = draw.integers(60 * i, 60 * i + 60, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"patient {k}.png")
    small = {"image_size": 16, "patch_size": 8, "device": "cpu", "batch_size": 8}
    first = unveil.pretrain(root / "my photos", model="vit-nano", out=root / "first", epochs=1, held_out=8, **small)
    return first, unveil.finetune(first, out=root / "tuned", epochs=4, device="cpu", batch_size=8)


def card_of(path):
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---")[1]), text


def test_a_card_says_what_the_run_has_recorded(runs, tmp_path, logged):
    first, tuned = runs
    out = export(tuned, to="timm", out=tmp_path / "cells", licence="cc-by-4.0", say=logged)
    facts, text = card_of(out / "README.md")
    assert facts == {
        "license": "cc-by-4.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["unveil", "timm"],
    }
    assert ModelCard.load(out / "README.md").data.license == "cc-by-4.0"  # as the Hub's own library reads it
    score = tuned.results["score"]
    assert f"| {100 * score['top1']:.1f} %" in text
    for run in (first, tuned):
        assert run.facts["data"]["fingerprint"] in text
        assert f"| images listed | {run.facts['data']['count']:,} |" in text
    assert f"| training images | {tuned.results['trained_on']:,} |" in text
    assert f"| training images | {first.results['images']:,} |" in text
    assert f"It was tested on {score['count']:,} images" in text
    assert "are few: an accuracy" in text
    assert "unveil pretrain 'my photos' --model vit-nano" in text
    assert "unveil finetune first" in text
    assert "4 outputs, in this order: `<b>1<_b>`, `Grün|rot`, `'x'`, `cat, dog`." in text


def test_a_card_holds_neither_paths_nor_names_of_files(runs, tmp_path, logged):
    for run in runs:
        for to in ("timm", "transformers", "safetensors"):
            out = export(run, to=to, out=tmp_path / f"{run.path.name}-{to}", say=logged)
            text = (out / "README.md" if out.is_dir() else out.with_name(f"{out.stem}.md")).read_text(encoding="utf-8")
            assert "secret-place" not in text
            assert "patient" not in text
            assert run.facts["hardware"]["host"] not in re.findall(r"[\w.-]+", text)


def test_a_warning_names_runs_without_their_folders():
    told = "Warning: /home/jane/run started from C:\\Users\\jane\\first, which was trained on 8 of 9 test images and/or texts."
    table = ResultTable("Results", ["metric", "value"], [], [told])
    warning = "Warning: run started from first, which was trained on 8 of 9 test images and/or texts."
    assert escaped(table).sentences == [warning]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("unveil pretrain /home/jane/scans --init /data/w.pth", "unveil pretrain scans --init w.pth"),
        ("unveil pretrain hf:///home/jane/scans/ --out=~/runs/a", "unveil pretrain hf://scans --out=a"),
        ("unveil finetune ../jane/run 'C:\\Users\\jane\\my scans'", "unveil finetune run 'my scans'"),
        (
            "unveil pretrain hf://jane/cells --base-lr 0.1 --crop-scale=-1",
            "unveil pretrain hf://jane/cells --base-lr 0.1 --crop-scale=-1",
        ),
        (
            "unveil pretrain photos/2024 --init timm:vit_base_patch16_224.mae",
            "unveil pretrain photos/2024 --init timm:vit_base_patch16_224.mae",
        ),
    ],
)
def test_a_command_shows_no_folders(typed, shown):
    assert without_folders(typed) == shown


def test_the_licence_of_weights_of_others_is_named_and_that_of_no_weights_is_not(runs, tmp_path, logged, make_mae):
    def licence_of(**config):
        run = unveil.Run(runs[1].path, {**runs[1].facts, "config": {**runs[1].facts["config"], **config}})
        return " ".join(licence_lines("mit", [run], "tuned"))

    assert licence_of() == "mit."
    assert licence_of(scratch=True, **{"from": "scratch"}) == "mit."
    assert licence_of(**{"from": "timm:vit_base_patch16_224.mae"}).endswith(
        "The licence of `timm:vit_base_patch16_224.mae`, which it was made from, applies as well."
    )
    assert "`teacher.pth`" in licence_of(teacher="/weights/teacher.pth")


def test_names_of_classes_cannot_change_the_page(runs, tmp_path, logged):
    out = export(runs[1], to="timm", out=tmp_path / "cells", say=logged)
    text = (out / "README.md").read_text(encoding="utf-8")
    outside_of_code = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert not re.search(r"(?<!\\)<b>", outside_of_code)
    rows = [line for line in outside_of_code.splitlines() if line.startswith("|")]
    assert rows
    assert all(re.fullmatch(r"\|.*(?<!\\)\|", row) for row in rows)


def test_a_file_without_a_run_says_that_nothing_is_known(make_mae, tmp_path, logged):
    model_files.save(make_mae(), tmp_path)
    out = export(tmp_path / "encoder.safetensors", to="timm", say=logged)
    facts, text = card_of(out / "README.md")
    assert facts["license"] == "unknown"
    assert "Nothing was measured, or the file does not record it." in text
    assert "It was not tested on labelled images." in text
    assert "No licence was given" in text
    assert "`encoder.safetensors`, which it was made from, applies" in text


def test_texts_are_not_called_images():
    run = SimpleNamespace(facts={"data": {"name": "reviews", "texts": 90}}, results={"trained_on": 60, "samples": "texts"})
    table = "\n".join(data_lines([run]))
    assert "| training texts | 60 |" in table
    assert "images" not in table


def test_the_code_of_a_card_runs(runs, tmp_path, logged, monkeypatch):
    """On a photograph that a phone has turned, which `unveil predict` sees upright."""
    monkeypatch.chdir(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(photo).save("image.jpg", quality=95, exif=turned)
    expected = torch.from_numpy(unveil.load(runs[1].path).predict_images(["image.jpg"]).scores)
    for to, run, width in (("timm", runs[1], 4), ("timm", runs[0], 96), ("transformers", runs[0], 96)):
        out = export(run, to=to, out=f"{to}-{run.path.name}", say=logged)
        code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
        names = {}
        exec(code, names)
        output = names["output"]
        if to == "timm" and run is runs[1]:
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        assert output.shape == (1, width) if to == "timm" else output.last_hidden_state.shape == (1, 5, width)


def test_a_bad_licence_or_repository_is_refused_before_the_work(runs, tmp_path, logged):
    for options, reason in (
        ({"licence": "Apache 2.0"}, "licence is 'Apache 2.0': expected an identifier"),
        ({"push": "jane/cells"}, "'jane/cells' is no repository: expected hf://user/name"),
        ({"push": "hf://cells"}, "'hf://cells' is no repository"),
        ({"push": "hf://jane/cells/more"}, "is no repository"),
    ):
        with pytest.raises(UnveilError, match=re.escape(reason)):
            export(runs[1], to="timm", out=tmp_path / "cells", say=logged, **options)
    assert not (tmp_path / "cells").exists()


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub, which huggingface_hub uses within `unveil.interop.hub`."""
    import huggingface_hub

    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_module, "client", lambda: HfApi(endpoint=hub.url, token=hub.token))
        hub.token = TOKEN
        yield hub


def test_an_upload_is_loaded_by_timm_again(runs, hub, tmp_path, logged):
    out = export(runs[1], to="timm", out=tmp_path / "cells", push="hf://jane/cells", licence="mit", say=logged)
    files = hub.repositories["jane/cells"]
    assert {name: (out / name).read_bytes() for name in ("README.md", "config.json", "model.safetensors")} == {
        name: content for name, content in files.items() if name != ".gitattributes"
    }
    assert hub.private["jane/cells"]
    assert "hf-hub:jane/cells" in files["README.md"].decode()
    assert f"{hub.url}/jane/cells" in logged[-1]
    (tmp_path / "again").mkdir()
    api = HfApi(endpoint=hub.url, token=TOKEN)
    for name in ("config.json", "model.safetensors"):
        api.hf_hub_download("jane/cells", name, local_dir=tmp_path / "again")
    models = [timm.create_model(f"local-dir:{folder}", pretrained=True).eval() for folder in (out, tmp_path / "again")]
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(models[0](images), models[1](images))


def test_a_single_file_is_uploaded_with_its_card(runs, hub, tmp_path, logged):
    export(runs[1], to="safetensors", out=tmp_path / "cells.safetensors", push="hf://jane/cells", public=True, say=logged)
    files = hub.repositories["jane/cells"]
    assert sorted(files) == [".gitattributes", "README.md", "cells.safetensors"]
    assert files["cells.safetensors"] == (tmp_path / "cells.safetensors").read_bytes()
    assert files["README.md"] == (tmp_path / "cells.md").read_bytes()
    assert 'hf_hub_download("jane/cells", "cells.safetensors")' in files["README.md"].decode()
    assert not hub.private["jane/cells"]


def test_nothing_on_the_hub_is_overwritten(runs, hub, tmp_path, logged):
    hub.repositories["jane/cells"] = {".gitattributes": b"", "config.json": b"mine"}
    with pytest.raises(UnveilError, match=re.escape("hf://jane/cells has files already (config.json), which are not overwritten")):
        export(runs[1], to="timm", out=tmp_path / "cells", push="hf://jane/cells", say=logged)
    assert hub.repositories["jane/cells"]["config.json"] == b"mine"
    assert not (tmp_path / "cells").exists()
    hub.repositories["jane/empty"] = {".gitattributes": b""}  # created on the website
    export(runs[1], to="timm", out=tmp_path / "cells", push="hf://jane/empty", say=logged)
    assert "model.safetensors" in hub.repositories["jane/empty"]


def test_without_a_token_nothing_is_done(runs, hub, tmp_path, logged):
    hub.token = "hf_wrong"
    with pytest.raises(UnveilError, match=r"there is no valid access token: run `hf auth login`, or set HF_TOKEN"):
        export(runs[1], to="timm", out=tmp_path / "cells", push="hf://jane/cells", say=logged)
    assert not (tmp_path / "cells").exists()
    assert hub.repositories == {}


@pytest.mark.parametrize("part", ["/api/repos/create", "/objects/", "/commit/main"])
def test_a_refused_upload_leaves_the_export_here_and_says_so(runs, hub, tmp_path, logged, part):
    hub.refused = (part, 403)
    with pytest.raises(UnveilError, match=re.escape("hf://jane/cells: the Hugging Face Hub did not")) as caught:
        export(runs[1], to="timm", out=tmp_path / "cells", push="hf://jane/cells", say=logged)
    assert f"The export is complete: {tmp_path / 'cells'}" in str(caught.value)
    assert (tmp_path / "cells" / "model.safetensors").is_file()
    assert "model.safetensors" not in hub.repositories.get("jane/cells", {})


def test_a_hub_that_does_not_answer_is_a_sentence(runs, tmp_path, logged, monkeypatch):
    monkeypatch.setattr(hub_module, "client", lambda: HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))
    with pytest.raises(UnveilError, match=r"^hf://jane/cells: the Hugging Face Hub did not log in: "):
        export(runs[1], to="timm", out=tmp_path / "cells", push="hf://jane/cells", say=logged)
