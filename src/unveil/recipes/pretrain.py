"""Pre-training: from a folder of images to an encoder, with proof that it learned."""

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
from unveil.runs.open_data import Subset, skipped_lines, write_skipped
from unveil.runs.pretrain_setup import resolve
from unveil.runs.train_in_run import finished, fit
from unveil.train.log import Record
from unveil.train.loop import Monitor, total_steps
from unveil.train.parallel import HardwareConfig, World, autocast, shutdown
from unveil.train.run_cost import bill_line, bill_of
from unveil.train.run_folder import Run, open_run, show, tell
from unveil.train.state import load_model_state


def pretrain(
    data: Data = "digits", *, method: str = "mae", model: str | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Trains an encoder on images without labels, or goes on with a run that was stopped.

    For a method of texts it is `unveil.recipes.pretrain_text.pretrain_on_texts`.

    Args:
        data: See `unveil.data.sources.FORMS`; or an array (N, H, W, C) of uint8 or uint16.
        method: A name from `unveil.methods.METHODS`.
        model: A name from `unveil.models.vit.MODELS`; vit-base, or vit-nano for the embedded digits.
        out: The run folder, `runs/<data>-<method>-<model>` by default. If it holds this run already, it goes on.
        **options: Fields of `PretrainConfig`, the method's `Config`, `AugmentConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    if method in TEXTS:
        return pretrain_on_texts(cast("str | Path", data), method=method, model=model, out=out, **options)
    began = time.monotonic()
    setting = resolve(data, method, model, options)
    own, training, hardware, world = setting.own, setting.training, setting.hardware, setting.world
    say = tell(world.is_main)
    run = open_run(setting.path(out), "pretrain", setting.config, setting.facts, write=world.is_main, say=say)
    if finished(run, world):
        return run

    dataset, judged, cut = setting.open_parts()
    write_skipped(run.path, [dataset, judged], world, say)
    vit = setting.vit(dataset.dataset)
    torch.manual_seed(training.seed)
    learner = setting.build(vit)
    untrained = copy.deepcopy(learner.encoder)
    if world.is_main:
        native.write_config(learner, run.path)
    loader = setting.loader(dataset.labelled() if learner.classes else dataset)
    total = total_steps(training, loader)
    parameters = sum(p.numel() for p in learner.encoder.parameters())
    (height, width), (rows, columns) = setting.sizes
    say(
        f"{type(learner).__name__} with {setting.model} ({parameters / 1e6:.1f} M parameters) on {len(dataset):,} images of "
        f"{setting.source.name}, {height} x {width} px in patches of {rows} x {columns}; {total:,} steps of "
        f"{training.batch_size} in {hardware.precision} on {world.size} {world.device.type} "
        f"process{'es' * (world.size > 1)}"
    )
    if total < 500:
        say(f"{total} steps are few to learn from: think of more --epochs, or of a smaller --batch-size")
    watched = monitors(dataset, judged, vit, hardware, world)
    first = fit(learner, loader, run, world, training, setting.optim, hardware, watched, own.tracker, "pretrain")
    if world.is_main:
        learner = setting.build(vit)
        load_model_state(learner, run.checkpoints().load(total, "model"))
        learner.to(world.device).eval()
        native.save(learner, run.path)
        save_samples(run, judged if len(judged) else dataset, vit)
        write_skipped(run.path, [dataset, judged], world, lambda text: None)
        say("judging what was learned ...")
        results = prove(learner, untrained, dataset, judged, hardware, world)
        seconds = sum(line.get("seconds", 0.0) for line in run.log)
        results |= {"images_seen": total * training.batch_size, "seconds": seconds, "kept_aside": cut}
        run.write_results(results)
        page = write_page(run, learner)
        run.write_results(results | {"cost": bill_of(run, began, first, world)})
        show(terminal_table(run.results))
        say(f"{bill_line(run.results['cost'])}\nThe encoder: {run.path / 'encoder.safetensors'}\nThe report:  {page}")
    shutdown(world)
    return run


def prove(learner: Method, untrained: ViT, dataset: Subset, judged: Subset, hardware: HardwareConfig, world: World) -> Record:
    """What was learned: error on images kept aside, and what the features are worth."""
    return {
        "images": len(dataset),
        "skipped": len(skipped_lines(dataset, judged)),
        "held_out": held_out(learner, judged=judged, vit=learner.encoder.config, hardware=hardware, world=world),
    } | compare(learner, untrained, dataset, judged, hardware, world)


def monitors(dataset: Subset, judged: Subset, vit: ViTConfig, hardware: HardwareConfig, world: World) -> list[Monitor]:
    """What is looked at during a run: error on images kept aside, and the features."""
    bank, queries = judges(dataset, judged, 2000, 500)
    return [
        partial(held_out, judged=judged, vit=vit, hardware=hardware, world=world),
        partial(online, bank=bank, queries=queries, vit=vit, hardware=hardware, world=world),
    ]


def judges(dataset: Subset, judged: Subset, most: int, test_set: int) -> tuple[Subset, Subset | None]:
    """Images to look at the features of: labelled ones, and others to classify; without labels any, and none to classify."""
    bank, queries = dataset.labelled(most), judged.labelled(test_set)
    return (bank, queries) if len(bank) and len(queries) else (dataset.spread_out(min(test_set, 2000)), None)


def online(
    learner: Method, *, bank: Subset, queries: Subset | None, vit: ViTConfig, hardware: HardwareConfig, world: World
) -> Record:
    """How far the features of the encoder spread now, and their k-NN accuracy where there are labels."""
    features = partial(learner.encoder.features, pool=learner.pool)
    train_set = features_of(features, bank, vit, hardware, world)
    seen: Record = collapse(train_set)
    if queries is not None:
        test_set = features_of(features, queries, vit, hardware, world)
        seen["knn"] = score(knn_scores(test_set, train_set, bank.labels, len(bank.dataset.classes)), queries.labels).top1
    return seen


@torch.no_grad()
def held_out(learner: Method, *, judged: Subset, vit: ViTConfig, hardware: HardwareConfig, world: World, most: int = 256) -> Record:
    """What the method says of images that were kept aside, each with the same mask every time."""
    if not len(judged):
        return {}
    places, totals = judged.places[:most], dict[str, Any]()
    for numbers in torch.split(torch.arange(len(places)), at_once(world)):
        images, sizes = judged.dataset.batch(places[numbers])
        labels = judged.dataset.labels_of(places[numbers])
        batch = Batch(images, sizes, sample_keys(0, int(numbers[0]), len(numbers)), labels).to(world.device)
        with autocast(hardware, world):
            seen = learner.validation_metrics(batch._replace(images=view(batch, vit.image_size, vit.mean, vit.std)))
        totals = {key: totals.get(key, 0.0) + len(numbers) / len(places) * value for key, value in seen.items()}
    return learner.reduce_metrics(totals)


def compare(
    learner: Method, untrained: ViT, dataset: Subset, judged: Subset, hardware: HardwareConfig, world: World, most: int = 20_000
) -> Record:
    """What the features of the encoder are worth, beside those of the same encoder untrained, and raw pixels.

    How far they spread; where there are labels, k-NN and linear accuracy.
    """
    bank, queries = judges(dataset, judged, most, most // 2)
    vit, rows, spread = learner.encoder.config, {}, {}
    encoders = {"encoder": learner.encoder, "untrained": untrained.to(world.device).eval()}
    entries: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(encoder.features, pool=learner.pool) for name, encoder in encoders.items()
    }
    for name, features in (entries | ({"raw pixels": raw_pixels} if queries else {})).items():
        train_set = features_of(features, bank, vit, hardware, world)
        if name in encoders:
            spread[name] = collapse(train_set)
        if queries:
            test_set = features_of(features, queries, vit, hardware, world)
            scores = judge_features(train_set, bank.labels, test_set, queries.labels, len(bank.dataset.classes))
            rows[name] = {probe: result.top1 for probe, result in scores.items()}
    found: Record = {"spread": spread, "width": vit.width}
    if queries:
        found |= {"features": rows, "judged_on": {"train": len(bank), "test": len(queries), "classes": len(bank.dataset.classes)}}
    return found


def save_samples(run: Run, part: Subset, vit: ViTConfig, count: int = 8) -> None:
    """A few images for the report, normalised, as `samples.npz`."""
    chosen = part.spread_out(count)
    np.savez(run.path / "samples.npz", images=views_of(chosen, vit).numpy(), names=np.array(chosen.names))
