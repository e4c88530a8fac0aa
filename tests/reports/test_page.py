import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.reports.conftest import make_mae, write_samples
from unveil.data.augment import AugmentConfig
from unveil.models.vit import ViT
from unveil.reports.page import write_page
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.train.run_folder import Run

VOID = {"meta", "br", "hr", "img", "path", "use", "image"}
PARTS = ("log.jsonl", "results.json", "skipped.txt", "samples.npz")


class Reader(HTMLParser):
    """Checks that elements are closed in order, and remembers what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given)
        if "id" in given:
            self.ids[str(given["id"])] += 1
        self.links += [str(given[name]) for name in ("src", "href", "xlink:href", "srcset", "action") if name in given]
        if tag == "svg":
            assert given["role"] == "img"
            assert given["aria-label"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(run: Run, learner: object = None) -> Reader:
    path = write_page(run, learner)  # type: ignore[arg-type]
    assert path == run.path / "report.html"
    reader = Reader(path.read_text(encoding="ascii"))
    assert all(count == 1 for count in reader.ids.values())
    assert all(link[1:] in reader.ids for link in reader.links if link.startswith("#"))
    return reader


def test_the_page_needs_nothing_else(run: Run):
    page = read(run, make_mae())
    text = (run.path / "report.html").read_text()
    assert write_page(run, make_mae()).read_text() == text  # and is the same each time
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?:|//|@import|<script", re.sub(r"base64,[^\"]*", "", text))
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_names_are_text(run: Run):
    page = read(run, make_mae())
    assert page.tags["img"] == page.tags["script"] == page.tags["b"] == 0
    for name in ("<img onerror=x>", "<img onerror=alert(1)>", "x/<script>.jpg", "pets <b>&</b>", "ship & sea"):
        assert name in page.text, name


def test_the_page_tells_all(run: Run):
    page = read(run, make_mae())
    for part in (
        "MAE with vit-nano, pretrained on",
        "60.0 %",
        "41.3\N{NO-BREAK SPACE}%",
        "22.3 points ahead",
        "0.121",
        "75 % masked, as in training",
        "gets the mean and the variance of the true patch",
        "head 3",
        "81 files were skipped",
        "no image (80)",
        "and 55 more, in skipped.txt",
        "abc123",
        "9,000",
        "16 \N{MULTIPLICATION SIGN} 16",
        "unveil pretrain 'pets <b>' --seed 7",
        "torch 2.11",
        "1 h 1 min",
        "2 \N{MULTIPLICATION SIGN} H100",
        "Most frequent mistakes",
        "decoder_depth",
    ):
        assert part in page.text, part
    assert page.tags["h1"] == 1
    assert page.tags["h2"] == page.tags["section"] == 9


@pytest.mark.parametrize("missing", [*((part,) for part in PARTS), PARTS])
def test_a_missing_part_is_left_out(run: Run, missing: tuple[str, ...]):
    for part in missing:
        (run.path / part).unlink()
    page = read(run)
    assert ("The trained model was not available" in page.text) == ("samples.npz" not in missing)
    if "results.json" in missing:
        assert "There are no results yet" in page.text
    if "log.jsonl" in missing:
        assert "The log has no lines yet" in page.text
    assert ("were skipped" in page.text) == ("skipped.txt" not in missing)


def test_a_page_without_a_model_says_so(run: Run):
    assert "The trained model was not available" in read(run).text


@pytest.mark.parametrize("channels", [1, 5])
def test_grey_and_many_channels(run: Run, channels: int):
    write_samples(run.path, channels)
    page = read(run, make_mae(channels))
    assert ("5 channels: the first three are shown" in page.text) == (channels == 5)


def test_images_that_do_not_fit_the_model_give_a_reason(run: Run):
    write_samples(run.path, 1)
    assert "samples.npz holds images of 1 x 16 x 16, but the model takes 3 x (16, 16)" in read(run, make_mae()).text


def test_samples_that_are_damaged_or_nameless(run: Run):
    np.savez(run.path / "samples.npz", images=np.zeros((2, 3, 16, 16), np.float32))
    assert "image 2" in read(run, make_mae()).text
    (run.path / "samples.npz").write_bytes(b"PK damaged")
    assert "samples.npz is damaged (" in read(run).text


def test_a_classifier_has_attention_and_no_reconstructions(run: Run):
    encoder = make_mae().encoder
    assert isinstance(encoder, ViT)
    page = read(run, Finetune.build(encoder, FinetuneConfig(), AugmentConfig(), ["a", "b", "c"]).eval())
    assert "head 3" in page.text
    assert "Reconstructions" not in page.text


def test_many_classes_are_an_image_and_the_extremes(run: Run):
    confusion = (np.eye(30, dtype=int) * 5).tolist()
    metric = {"top1": 1.0, "top5": 1.0, "per_class": [1.0] * 30, "confusion": confusion, "count": 150}
    (run.path / "results.json").write_text(json.dumps({"score": metric, "classes": [f"c{i}" for i in range(30)]}))
    page = read(run)
    assert "the 10 worst and the 10 best of 30" in page.text
    assert "There are no mistakes" in page.text
    assert page.tags["image"] == 1


def test_a_run_that_has_only_begun(run: Run):
    for part in PARTS:
        (run.path / part).unlink()
    (run.path / "run.json").write_text('{"kind": "pretrain"}')
    page = read(Run(run.path))
    assert "A model, pretrained on unnamed data" in page.text
    assert "There are no results yet" in page.text
    assert page.tags["section"] == 2  # the log that has no lines, and the environment


SEGMENTATION = {
    "task": "segment",
    "primary": "mean_iou",
    "score": {
        "mean_iou": 0.456,
        "pixel_accuracy": 0.875,
        "boundary_error": 1.25,
        "per_class": [0.6, None, 0.312],
        "per_class_recall": [0.7, None, 0.25],
        "confusion": [[60, 5, 5], [0, 0, 0], [9, 1, 3]],
        "unit": "pixels",
        "count": 4,
    },
    "classes": ["ground", "<b>sky</b>", "tree"],
    "samples": "images",
}


def segmentation_samples(run: Run) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 3, (2, 2, 16, 16))
    true[0, :4] = 255
    images = generator.normal(size=(2, 3, 16, 16)).astype(np.float32)
    np.savez(run.path / "samples.npz", images=images, maps=true, predicted=predicted, names=np.array(["one", "two"]))
    return true, predicted


def test_a_task_is_shown_by_its_own_metric(run: Run):
    segmentation_samples(run)
    (run.path / "results.json").write_text(json.dumps(SEGMENTATION))
    page = read(Run(run.path), make_mae())
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Its mean IoU is 45.6 % on 4 test images." in text
    for part in ("mean IoU45.6 %", "pixel accuracy87.5 %", "boundary error1.25", "IoU of each class, the worst first"):
        assert part in text, part
    for part in ("tree31.2 %25.0 %13", "ground60.0 %70.0 %70", "<b>sky</b>no samplesno samples0", "Predictions", "truth"):
        assert part in text, part
    assert "accuracy of the classes" not in text
    assert page.tags["b"] == 0


def test_maps_without_a_model_give_a_reason(run: Run):
    segmentation_samples(run)
    page = read(run)
    assert page.text.count("The trained model was not available") == 3
    assert "#predictions" in page.links


def test_numbers_without_classes_have_no_section(run: Run):
    (run.path / "results.json").write_text(json.dumps({"primary": "bleu", "score": {"bleu": 31.25}, "samples": "sentences"}))
    page = read(Run(run.path))
    assert "Its BLEU is 31.25 on the test set." in page.text
    assert "#classes" not in page.links


def test_a_method_outside_of_the_package_has_its_class_name(run: Run):
    facts = json.loads((run.path / "run.json").read_text())
    facts["config"] |= {"method": "blobs", "class": "/home/me/blobs.py:Blobs"}
    (run.path / "run.json").write_text(json.dumps(facts))
    assert "Blobs with vit-nano, pretrained on" in read(Run(run.path)).text


def test_a_translation_run_is_shown_by_its_bleu(run: Run):
    facts = {"kind": "translate", "config": {"model": "tiny"}, "data": {"name": "multi30k", "count": 29000}}
    (run.path / "run.json").write_text(json.dumps(facts))
    bleu = {"flickr": {"greedy": 31.234, "beam": 32.5}, "coco": {"greedy": 25.0, "beam": 26.0}}
    (run.path / "results.json").write_text(json.dumps({"bleu": bleu, "beams": 4, "pairs": 29000}))
    (run.path / "log.jsonl").write_text(
        "\n".join(json.dumps({"step": i, "epoch": i, "loss": 1.0, "bleu": 10.0 * i}) for i in (1, 2))
    )
    (run.path / "samples.npz").unlink()
    text = read(Run(run.path)).text
    for part in (
        "tiny, a translation model trained on multi30k",
        "Its BLEU is 32.5 on flickr, with a beam of 4.",
        "29,000 sentence pairs",
    ):
        assert part in text, part
    assert "flickr31.2332.50" in text
    assert "From 10.0 to 20.0, measured during training." in text
    assert "images" not in text.replace("images seen", "")
