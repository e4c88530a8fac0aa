"""`unveil embed`: one row of features per image, with its path, for search, clustering or any classifier."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from unveil.atomic_files import replacing
from unveil.data.sources import Data
from unveil.data.splits import Subset
from unveil.evaluate.features import features_of, refuse_non_finite
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.options import configure
from unveil.paths import refuse_unless_new_table
from unveil.plain_text import count_of, printable
from unveil.plugins import trust as allow
from unveil.ranges import Count, Range
from unveil.runs.labelled_data import write_arrays
from unveil.runs.open_data import open_each, say_notes
from unveil.runs.skipped_files import skipped_lines
from unveil.train.parallel import HardwareConfig, join_processes
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which features to compute, and how."""

    HIDDEN = ("max_pixels",)
    split: str | None = None
    """Parts of DATA to embed: train, val, test, unlabeled, other (beside the splits), or several as in train+val; by default
    all."""
    pool: Literal["mean", "class", "patches"] | None = None
    """Features to write: the mean of the patch tokens, the class token, or all patch tokens; by default those that suit the
    method."""
    batch_size: Annotated[int, Range(1, 2**20)] = 256
    """Images per batch."""
    max_pixels: Count = 64_000_000
    """Files with more pixels than this are not decoded."""


def embed(
    run: str | os.PathLike[str], data: Data, *, out: str | Path | None = None, trust: str | Path | None = None, **options: Any
) -> Path:
    """Writes the features of every image of DATA that can be read, of all its splits, and says what was left out.

    Args:
        run: Anything that `unveil.load` accepts.
        data: See `unveil.data.sources.FORMS`.
        out: A new file: .npz with "path", "embedding", "label" if there are classes, and "split" ("train", "val", "test", ...) if
            DATA has splits; or .parquet with the same columns.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `EmbedConfig` and `HardwareConfig`. By default, features are computed in float32.

    Raises:
        UnveilError: If the file exists, or has another suffix; or if features are not finite.
    """
    allow(trust)
    config, hardware = configure(options, EmbedConfig, HardwareConfig)
    path = Path(out) if out else Path("embeddings.npz")
    refuse_unless_new_table(path)
    world, say = join_processes(hardware), printer(True)
    if hardware.precision == "auto":
        hardware = replace(hardware, precision="float32")  # features are a result: rounding is for those who ask for it
    learner = load(run, say=say).to(world.device).eval()
    encoder = vit_of(learner)
    vit = encoder.config
    parts = open_each(data, config.split, vit, max_pixels=config.max_pixels, show=True)
    say_notes(say, "", *(part.dataset.source for part in parts.values()))

    def patch_tokens(images: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = encoder(images)
        return tokens[:, vit.prefix_tokens :]

    function = patch_tokens if config.pool == "patches" else partial(learner.features, pool=config.pool)
    found = [features_of(function, part, vit, hardware, world, config.batch_size) for part in parts.values()]
    for features in found:
        refuse_non_finite(features, str(run))
    tables = [features.rows.numpy() for features in found]
    rows = tables[0] if len(tables) == 1 else np.concatenate(tables)  # which needs twice the memory
    names = np.array([name for features in found for name in features.subset.names])
    labels = np.array([name for features in found for name in class_names(features.subset)])
    columns = {"path": names, "embedding": rows} | ({"label": labels} if any(labels) else {})
    if len(parts) > 1:
        columns["split"] = np.repeat(np.array(list(parts)), [len(features.subset) for features in found])
    write_table(path, columns)
    for line in skipped_lines(*parts.values()):
        say(f"skipped {line}")
    counts = ", ".join(f"{len(features.subset):,} of {name}" for name, features in zip(parts, found, strict=True))
    splits = f" ({counts})" if len(parts) > 1 else ""
    say(f"{count_of(len(rows), 'image')}{splits}, {' x '.join(map(str, rows.shape[1:]))} features each: {path}")
    return path


def class_names(subset: Subset) -> list[str]:
    """The class of each image; "" if it has none."""
    return [subset.dataset.classes[label] if label >= 0 else "" for label in subset.labels.tolist()]


def write_table(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Writes one row per image, as NPZ or Parquet depending on the suffix."""
    if path.suffix == ".npz":
        write_arrays(path, columns)
        return
    import pyarrow as pa
    from pyarrow import parquet

    rows = columns["embedding"]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[-1])
    if rows.ndim == 3:
        lists = pa.FixedSizeListArray.from_arrays(lists, rows.shape[1])
    texts = {name: pa.array(map(printable, column)) for name, column in columns.items() if name != "embedding"}
    arrays = {name: texts.get(name, lists) for name in columns}
    with replacing(path, rows.nbytes) as fresh:
        parquet.write_table(pa.table(arrays), fresh)
