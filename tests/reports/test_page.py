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
        self.loader(text)
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
        "75 % hidden, as in training",
        "borrows the true patch's mean",
        "head 3",
        "81 files were left out",
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
    assert ("The trained model was not at hand" in page.text) == ("samples.npz" not in missing)
    if "results.json" in missing:
        assert "There are no results yet" in page.text
    if "log.jsonl" in missing:
        assert "The log has no lines yet" in page.text
    assert ("left out" in page.text) == ("skipped.txt" not in missing)


def test_a_page_without_a_model_says_so(run: Run):
    assert "The trained model was not at hand" in read(run).text


@pytest.mark.parametrize("channels", [1, 5])
def test_grey_and_many_channels(run: Run, channels: int):
    write_samples(run.path, channels)
    page = read(run, make_mae(channels))
    assert ("5 channels: the first three are shown" in page.text) == (channels == 5)


def test_images_that_do_not_fit_the_model_are_told(run: Run):
    write_samples(run.path, 1)
    assert "Not shown: images are (channels, height, width)" in read(run, make_mae()).text


def test_samples_that_are_damaged_or_nameless(run: Run):
    np.savez(run.path / "samples.npz", images=np.zeros((2, 3, 16, 16), np.float32))
    assert "image 2" in read(run, make_mae()).text
    (run.path / "samples.npz").write_bytes(b"PK damaged")
    assert "The trained model was not at hand" not in read(run).text


def test_a_classifier_has_attention_and_no_reconstructions(run: Run):
    encoder = make_mae().encoder
    assert isinstance(encoder, ViT)
    page = read(run, Finetune(encoder, 3, FinetuneConfig(), AugmentConfig()).eval())
    assert "head 3" in page.text
    assert "Reconstructions" not in page.text


def test_many_classes_are_a_image_and_the_extremes(run: Run):
    confusion = (np.eye(30, dtype=int) * 5).tolist()
    score = {"top1": 1.0, "top5": 1.0, "per_class": [1.0] * 30, "confusion": confusion, "count": 150}
    (run.path / "results.json").write_text(json.dumps({"score": score, "classes": [f"c{i}" for i in range(30)]}))
    page = read(run)
    assert "the 10 worst and the 10 best of 30" in page.text
    assert "No image was taken for one of another class" in page.text
    assert page.tags["image"] == 1


def test_a_run_that_has_only_begun(run: Run):
    for part in PARTS:
        (run.path / part).unlink()
    (run.path / "run.json").write_text('{"kind": "pretrain"}')
    page = read(Run(run.path))
    assert "a model, pretrained on unnamed data" in page.text
    assert "There are no results yet" in page.text
    assert page.tags["section"] == 2  # the log that has no lines, and the receipt
