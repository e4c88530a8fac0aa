"""Pre-training: from a folder of pictures to an encoder, with proof that it learned."""

import copy
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from unveil.blocks.chance import sample_keys
from unveil.data.augment import view
from unveil.data.batch import Batch
from unveil.data.sources import Data
from unveil.interop import native
from unveil.learner import Method
from unveil.methods import TEXTS
from unveil.models.vit import ViT, ViTConfig
from unveil.recipes.corpus import pretrain_on_texts
from unveil.recipes.features import at_once, features_of, judge_features, raw_pixels, views_of
from unveil.recipes.fitting import fit
from unveil.recipes.reading import Part, skipped_lines, write_skipped
from unveil.recipes.setting import settle
from unveil.reports.page import write_page
from unveil.reports.table import terminal_table
from unveil.tasks.knn import knn_scores
from unveil.tasks.score import score
from unveil.train.bill import bill_line, bill_of
from unveil.train.log import Record
from unveil.train.loop import Monitor, total_steps
from unveil.train.parallel import Place, SpreadConfig, autocast, leave
from unveil.train.run import Run, open_run, show, tell
from unveil.train.state import load_model_state


def pretrain(
    data: Data = "digits", *, method: str = "mae", model: str | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Trains an encoder on pictures without labels, or goes on with a run that was stopped.

    For a method of texts it is `unveil.recipes.corpus.pretrain_on_texts`.

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
    if run.results and (run.path / "report.html").exists():
        say(f"{run.path} is finished. Its report: {run.path / 'report.html'}")
        leave(place)
        return run

    pictures, judged, cut = setting.open_parts()
    write_skipped(run.path, [pictures, judged], place, say)
    vit = setting.vit(pictures.pictures)
    torch.manual_seed(training.seed)
    learner = setting.build(vit)
    untrained = copy.deepcopy(learner.encoder)
    if place.lead:
        native.write_config(learner, run.path)
    feed = setting.feed(pictures)
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
        "pictures": len(pictures), "skipped": len(skipped_lines(pictures, judged)),
        "held_out": held_out(learner, judged=judged, vit=learner.encoder.config, hardware=hardware, place=place),
    } | compare(learner.encoder, untrained, pictures, judged, hardware, place)  # fmt: skip


def monitors(pictures: Part, judged: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place) -> list[Monitor]:
    """What is looked at during a run: error on pictures kept aside, and k-NN accuracy where there are labels."""
    watched: list[Monitor] = [partial(held_out, judged=judged, vit=vit, hardware=hardware, place=place)]
    bank, queries = pictures.labelled(2000), judged.labelled(500)
    if len(bank) and len(queries):
        watched.append(partial(online_knn, bank=bank, queries=queries, vit=vit, hardware=hardware, place=place))
    return watched


def online_knn(learner: Method, *, bank: Part, queries: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place) -> Record:
    """k-NN accuracy of the encoder as it is now."""
    known, asked = (features_of(learner.encoder.features, part, vit, hardware, place) for part in (bank, queries))
    return {"knn": score(knn_scores(asked, known, bank.labels, len(bank.pictures.classes)), queries.labels).top1}


@torch.no_grad()
def held_out(
    learner: Method, *, judged: Part, vit: ViTConfig, hardware: SpreadConfig, place: Place, most: int = 256
) -> Record:
    """What the method says of pictures that were kept aside, each with the same mask every time."""
    if not len(judged):
        return {}
    places, totals = judged.places[:most], dict[str, float]()
    for numbers in torch.split(torch.arange(len(places)), at_once(place)):
        images, sizes = judged.pictures.batch(places[numbers])
        batch = Batch(images, sizes, sample_keys(0, int(numbers[0]), len(numbers))).to(place.device)
        with autocast(hardware, place):
            seen = learner.held_out(batch._replace(images=view(batch, vit.image_size, vit.mean, vit.std)))
        totals = {key: totals.get(key, 0.0) + len(numbers) / len(places) * value for key, value in seen.items()}
    return totals


def compare(
    encoder: ViT, untrained: ViT, pictures: Part, judged: Part, hardware: SpreadConfig, place: Place, most: int = 20_000
) -> Record:
    """k-NN and linear accuracy of the encoder, of the same encoder untrained, and of raw pixels, where there are labels."""
    bank, queries = pictures.labelled(most), judged.labelled(most // 2)
    if not (len(bank) and len(queries)):
        return {}
    vit, rows = encoder.config, {}
    contestants = {"encoder": encoder.features, "untrained": untrained.to(place.device).eval().features, "raw pixels": raw_pixels}
    for name, features in contestants.items():
        known, asked = (features_of(features, part, vit, hardware, place) for part in (bank, queries))
        scores = judge_features(known, bank.labels, asked, queries.labels, len(bank.pictures.classes))
        rows[name] = {probe: result.top1 for probe, result in scores.items()}
    sizes = {"train": len(bank), "test": len(queries), "classes": len(bank.pictures.classes)}
    return {"features": rows, "judged_on": sizes}


def save_samples(run: Run, part: Part, vit: ViTConfig, count: int = 8) -> None:
    """A few pictures for the report, normalised, as `samples.npz`."""
    chosen = part.spread_out(count)
    np.savez(run.path / "samples.npz", images=views_of(chosen, vit).numpy(), names=np.array(chosen.names))
