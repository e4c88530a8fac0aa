"""Pre-training: from a folder of pictures to an encoder, with proof that it learned."""

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import view
from unveil.data.batch import Batch
from unveil.data.sources import Data
from unveil.evaluate.collapse import collapse
from unveil.evaluate.features import at_once, features_of, judge_features, raw_pixels, views_of
from unveil.evaluate.knn import knn_scores
from unveil.evaluate.metrics import score
from unveil.interop import model_files as native
from unveil.learner import Method
from unveil.methods import TEXTS
from unveil.models.vit import ViT, ViTConfig
from unveil.recipes.pretrain_text import pretrain_on_texts
from unveil.reports.page import write_page
from unveil.reports.table import terminal_table
from unveil.runs.open_data import Part, skipped_lines, write_skipped
from unveil.runs.pretrain_setup import settle
from unveil.runs.train_in_run import finished, fit
from unveil.train.log import Record
from unveil.train.loop import Monitor, total_steps
from unveil.train.parallel import Place, SpreadConfig, autocast, leave
from unveil.train.run_cost import bill_line, bill_of
from unveil.train.run_folder import Run, open_run, show, tell
from unveil.train.state import load_model_state


def pretrain(
    data: Data = "digits", *, method: str = "mae", model: str | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Trains an encoder on pictures without labels, or goes on with a run that was stopped.

    For a method of texts it is `unveil.recipes.pretrain_text.pretrain_on_texts`.

    Args:
        data: See `unveil.data.sources.FORMS`; or an array (N, H, W, C) of uint8 or uint16.
        method: A name from `unveil.methods.METHODS`.
        model: A name from `unveil.models.vit.MODELS`; vit-base, or vit-nano for the embedded digits.
        out: The run folder, `runs/<data>-<method>-<model>` by default. If it holds this run already, it goes on.
        **options: Fields of `PretrainConfig`, the method's `Config`, `AugmentConfig`, `TrainConfig`, `OptimConfig`, `SpreadConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    if method in TEXTS:
        return pretrain_on_texts(cast("str | Path", data), method=method, model=model, out=out, **options)
    began = time.monotonic()
    setting = settle(data, method, model, options)
    own, training, hardware, place = setting.own, setting.training, setting.hardware, setting.place
    say = tell(place.lead)
    run = open_run(setting.path(out), "pretrain", setting.config, setting.facts, write=place.lead, say=say)
    if finished(run, place):
        return run

    pictures, judged, cut = setting.open_parts()
    write_skipped(run.path, [pictures, judged], place, say)
    vit = setting.vit(pictures.pictures)
    torch.manual_seed(training.seed)
    learner = setting.build(vit)
    untrained = copy.deepcopy(learner.encoder)
    if place.lead:
        native.write_config(learner, run.path)
    feed = setting.feed(pictures.labelled() if learner.classes else pictures)
    total = total_steps(training, feed)
    parameters = sum(p.numel() for p in learner.encoder.parameters())
    (height, width), (rows, columns) = setting.sizes
    say(
        f"{type(learner).__name__} with {setting.model} ({parameters / 1e6:.1f} M parameters) on {len(pictures):,} pictures of "
        f"{setting.source.name}, {height} x {width} px in patches of {rows} x {columns}; {total:,} steps of "
        f"{training.batch_size} in {hardware.precision} on {place.world} {place.device.type} "
        f"process{'es' * (place.world > 1)}"
    )
    if total < 500:
        say(f"{total} steps are few to learn from: think of more --epochs, or of a smaller --batch-size")
    watched = monitors(pictures, judged, vit, hardware, place)
    first = fit(learner, feed, run, place, training, setting.optim, hardware, watched, own.tracker, "pretrain")
    if place.lead:
        learner = setting.build(vit)
        load_model_state(learner, run.checkpoints().load(total, "model"))
        learner.to(place.device).eval()
        native.save(learner, run.path)
        save_samples(run, judged if len(judged) else pictures, vit)
        write_skipped(run.path, [pictures, judged], place, lambda text: None)
        say("judging what was learned ...")
        results = prove(learner, untrained, pictures, judged, hardware, place)
        seconds = sum(line.get("seconds", 0.0) for line in run.log)
        results |= {"pictures_seen": total * training.batch_size, "seconds": seconds, "kept_aside": cut}
        run.write_results(results)
        page = write_page(run, learner)
        run.write_results(results | {"cost": bill_of(run, began, first, place)})
        show(terminal_table(run.results))
        say(f"{bill_line(run.results['cost'])}\nThe encoder: {run.path / 'encoder.safetensors'}\nThe report:  {page}")
    leave(place)
    return run


def prove(learner: Method, untrained: ViT, pictures: Part, judged: Part, hardware: SpreadConfig, place: Place) -> Record:
    """What was learned: error on pictures kept aside, and what the features are worth."""
    return {
        "pictures": len(pictures),
        "skipped": len(skipped_lines(pictures, judged)),
        "held_out": held_out(learner, judged=judged, vit=learner.encoder.config, hardware=hardware, place=place),
    } | compare(learner, untrained, pictures, judged, hardware, place)


def monitors(pictures: Part, judged: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place) -> list[Monitor]:
    """What is looked at during a run: error on pictures kept aside, and the features."""
    bank, queries = judges(pictures, judged, 2000, 500)
    return [
        partial(held_out, judged=judged, vit=vit, hardware=hardware, place=place),
        partial(online, bank=bank, queries=queries, vit=vit, hardware=hardware, place=place),
    ]


def judges(pictures: Part, judged: Part, most: int, asked: int) -> tuple[Part, Part | None]:
    """Pictures to look at the features of: labelled ones, and others to classify; without labels any, and none to classify."""
    bank, queries = pictures.labelled(most), judged.labelled(asked)
    return (bank, queries) if len(bank) and len(queries) else (pictures.spread_out(min(asked, 2000)), None)


def online(learner: Method, *, bank: Part, queries: Part | None, vit: ViTConfig, hardware: SpreadConfig, place: Place) -> Record:
    """How far the features of the encoder spread now, and their k-NN accuracy where there are labels."""
    features = partial(learner.encoder.features, pool=learner.pool)
    known = features_of(features, bank, vit, hardware, place)
    seen: Record = collapse(known)
    if queries is not None:
        asked = features_of(features, queries, vit, hardware, place)
        seen["knn"] = score(knn_scores(asked, known, bank.labels, len(bank.pictures.classes)), queries.labels).top1
    return seen


@torch.no_grad()
def held_out(learner: Method, *, judged: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place, most: int = 256) -> Record:
    """What the method says of pictures that were kept aside, each with the same mask every time."""
    if not len(judged):
        return {}
    places, totals = judged.places[:most], dict[str, Any]()
    for numbers in torch.split(torch.arange(len(places)), at_once(place)):
        images, sizes = judged.pictures.batch(places[numbers])
        labels = judged.pictures.labels_of(places[numbers])
        batch = Batch(images, sizes, sample_keys(0, int(numbers[0]), len(numbers)), labels).to(place.device)
        with autocast(hardware, place):
            seen = learner.held_out(batch._replace(images=view(batch, vit.image_size, vit.mean, vit.std)))
        totals = {key: totals.get(key, 0.0) + len(numbers) / len(places) * value for key, value in seen.items()}
    return learner.sum_up(totals)


def compare(
    learner: Method, untrained: ViT, pictures: Part, judged: Part, hardware: SpreadConfig, place: Place, most: int = 20_000
) -> Record:
    """What the features of the encoder are worth, beside those of the same encoder untrained, and raw pixels.

    How far they spread; where there are labels, k-NN and linear accuracy.
    """
    bank, queries = judges(pictures, judged, most, most // 2)
    vit, rows, spread = learner.encoder.config, {}, {}
    encoders = {"encoder": learner.encoder, "untrained": untrained.to(place.device).eval()}
    contestants: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(encoder.features, pool=learner.pool) for name, encoder in encoders.items()
    }
    for name, features in (contestants | ({"raw pixels": raw_pixels} if queries else {})).items():
        known = features_of(features, bank, vit, hardware, place)
        if name in encoders:
            spread[name] = collapse(known)
        if queries:
            asked = features_of(features, queries, vit, hardware, place)
            scores = judge_features(known, bank.labels, asked, queries.labels, len(bank.pictures.classes))
            rows[name] = {probe: result.top1 for probe, result in scores.items()}
    found: Record = {"spread": spread, "width": vit.width}
    if queries:
        found |= {"features": rows, "judged_on": {"train": len(bank), "test": len(queries), "classes": len(bank.pictures.classes)}}
    return found


def save_samples(run: Run, part: Part, vit: ViTConfig, count: int = 8) -> None:
    """A few pictures for the report, normalised, as `samples.npz`."""
    chosen = part.spread_out(count)
    np.savez(run.path / "samples.npz", images=views_of(chosen, vit).numpy(), names=np.array(chosen.names))
