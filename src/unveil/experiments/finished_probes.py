"""Probes of a comparison that have ended: whether they are of the encoder, the labelled images and the options of this call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.atomic_files import set_aside
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop.encoder_only import checksums, vit_of
from unveil.interop.load import load
from unveil.json_files import read_json
from unveil.models.vit import ViT
from unveil.runs.labelled_data import LabelledOptions, LabelledSubsets, data_facts, labelled_subsets
from unveil.runs.probing import ProbeConfig
from unveil.train.data_changes import data_changes
from unveil.train.run_folder import HARMLESS, ChangedSettingsError, Run, weight_changes
from unveil.train.terminal import printer


def finished_probe(folder: Path) -> bool:
    """Whether a probe has ended. If its results are damaged, they are set aside: it is computed again when its turn comes."""
    if not (folder / "results.json").is_file():
        return False
    try:
        read_json(folder / "results.json")
    except UnveilError as error:
        printer(True)(f"{error}: it is set aside as {set_aside(folder / 'results.json').name}")
        return False
    return True


def probed_subsets(run: Run, data: str, options: Mapping[str, Any]) -> tuple[ViT, LabelledSubsets]:
    """The encoder of a run, and the labelled images that a probe of it is trained and tested on. No image is read.

    Args:
        run: The pre-training run.
        data: The labelled images.
        options: Options of the probe, of which those that choose images are used.
    """
    chosen = {name: options.get(name, getattr(ProbeConfig, name)) for name in ("split", "test_split", "max_pixels")}
    asked = LabelledOptions(**chosen, augment=AugmentConfig(), read=False, say=lambda text: None, show=False)
    encoder = vit_of(load(run.path, say=lambda text: None))
    return encoder, labelled_subsets(run.path, data, None, encoder.config, asked)


def refuse_other_probe(folder: Path, run: Run, data: str, options: Mapping[str, Any]) -> None:
    """Raises `ChangedSettingsError` if a probe that has ended had another encoder, other labelled images or other options.

    Args:
        folder: The folder of the probe.
        run: The run whose encoder is probed.
        data: The labelled images.
        options: The options of the probe.
    """
    results = Run(folder, {}).results
    found = results.get("config") or {}
    changes = [
        f"{key} was {found[key]!r}, is {value!r}"
        for key, value in options.items()
        if key in found and key not in HARMLESS and found[key] != value
    ]
    if not changes:
        encoder, opened = probed_subsets(run, data, options)
        facts = data_facts(opened.train.dataset.source, opened.test.dataset.source, opened.splits)
        changes = weight_changes(results, {"encoder": checksums(encoder)})  # earlier versions recorded none
        changes += data_changes(results["data"], facts) if results.get("data") else []
    if changes:
        raise ChangedSettingsError(
            f"{folder} is a probe with different settings: {'; '.join(map(str.strip, changes))}. ",
            "Use the old settings, or choose another --out",
        )
