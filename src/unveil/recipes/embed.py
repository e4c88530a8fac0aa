"""`unveil embed`: one row of features per image, with its path, for search, clustering or any classifier."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unveil.data.sources import Data
from unveil.data.splits import Subset
from unveil.evaluate.features import features_of
from unveil.interop.encoder_only import vit_of
from unveil.interop.load import load
from unveil.options import configure
from unveil.paths import refuse_unless_new_table
from unveil.plugins import trust as allow
from unveil.runs.open_data import open_whole, skipped_lines, stored_side
from unveil.train.parallel import HardwareConfig, join_processes, resolve_precision
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which features to compute, and how."""

    HIDDEN = ("max_pixels",)
    pool: Literal["mean", "class", "patches"] | None = None
    """Features to write: the mean of the patch tokens, the class token, or all patch tokens; by default those that suit the
    method."""
    batch_size: int = 256
    """Images per batch."""
    max_pixels: int = 64_000_000
    """Files with more pixels than this are not decoded."""


def embed(run: str | Path, data: Data, *, out: str | Path | None = None, trust: str | Path | None = None, **options: Any) -> Path:
    """Writes the features of every image of DATA.

    Args:
        run: Anything that `unveil.load` accepts.
        data: See `unveil.data.sources.FORMS`.
        out: A new file: .npz with "path", "embedding" and, if there are classes, "label"; or .parquet with the same columns.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `EmbedConfig` and `HardwareConfig`.

    Raises:
        UnveilError: If the file exists, or has another suffix.
    """
    allow(trust)
    config, hardware = configure(options, EmbedConfig, HardwareConfig)
    path = Path(out) if out else Path("embeddings.npz")
    refuse_unless_new_table(path)
    world, say = join_processes(hardware), printer(True)
    hardware = resolve_precision(hardware, world)
    learner = load(run, say=say).to(world.device).eval()
    encoder = vit_of(learner)
    vit = encoder.config
    subset = open_whole(data, side=stored_side(vit.image_size), channels=vit.channels, max_pixels=config.max_pixels, show=True)

    def patch_tokens(images: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = encoder(images)
        return tokens[:, 1:]

    function = patch_tokens if config.pool == "patches" else partial(encoder.features, pool=config.pool or learner.pool)
    rows = features_of(function, subset, vit, hardware, world, config.batch_size).numpy()
    # If images are read on demand, an unreadable image was replaced by another one: drop its row.
    readable = np.array([name not in subset.dataset.skipped for name in subset.names])
    rows, subset = rows[readable], Subset(subset.dataset, subset.indices[torch.from_numpy(readable)])
    classes = [subset.dataset.classes[i] if i >= 0 else "" for i in subset.labels.tolist()]
    labels = np.array(classes) if any(classes) else None
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part{path.suffix}")
    write_table(fresh, np.array(subset.names), rows, labels)
    fresh.rename(path)
    for line in skipped_lines(subset):
        say(f"skipped {line}")
    say(f"{len(rows):,} images, {' x '.join(map(str, rows.shape[1:]))} features each: {path}")
    return path


def write_table(path: Path, names: np.ndarray, rows: np.ndarray, labels: np.ndarray | None) -> None:
    """Writes one row per image, as NPZ or Parquet depending on the suffix."""
    if path.suffix == ".npz":
        columns: dict[str, Any] = {"path": names, "embedding": rows} | ({} if labels is None else {"label": labels})
        np.savez(path, **columns)
        return
    import pyarrow as pa
    from pyarrow import parquet

    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[-1])
    if rows.ndim == 3:
        lists = pa.FixedSizeListArray.from_arrays(lists, rows.shape[1])
    arrays = {"path": pa.array(names.tolist()), "embedding": lists}
    arrays |= {} if labels is None else {"label": pa.array(labels.tolist())}
    parquet.write_table(pa.table(arrays), path)
