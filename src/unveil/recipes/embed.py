"""Embedding: one row an image, with its path, for search, clustering or a classifier of one's own."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unveil.data.sources import Data
from unveil.errors import UnveilError
from unveil.evaluate.features import features_of
from unveil.interop.load import load
from unveil.interop.model_files import vit_of
from unveil.options import configure
from unveil.runs.open_data import Subset, open_whole, skipped_lines, stored_side
from unveil.train.parallel import HardwareConfig, join_processes, resolve_precision
from unveil.train.run_folder import tell


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What to write for each image."""

    pool: Literal["mean", "class", "patches"] | None = None
    """The mean of the patch tokens, the class token, or every patch token; by default what the method trains."""
    batch_size: int = 256
    """Images at a time."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""


def embed(run: str | Path, data: Data, *, out: str | Path | None = None, **options: Any) -> Path:
    """Writes the features of every image of DATA.

    Args:
        run: Whatever `unveil.load` takes.
        data: See `unveil.data.sources.FORMS`.
        out: A new file: .npz with "path", "embedding" and, where there are classes, "label"; or .parquet with the same columns.
        **options: Fields of `EmbedConfig` and `HardwareConfig`.

    Raises:
        UnveilError: When the file exists, or has another ending.
    """
    own, hardware = configure(options, EmbedConfig, HardwareConfig)
    path = Path(out) if out else Path("embeddings.npz")
    if path.suffix not in (".npz", ".parquet"):
        raise UnveilError(f"{path} ends in {path.suffix or 'nothing'}: use .npz or .parquet")
    if path.exists():
        raise UnveilError(f"{path} exists: choose another --out")
    world, say = join_processes(hardware), tell(True)
    hardware = resolve_precision(hardware, world)
    learner = load(run, say=say).to(world.device).eval()
    encoder = vit_of(learner)
    vit = encoder.config
    part = open_whole(data, side=stored_side(vit.image_size), channels=vit.channels, pixel_limit=own.pixel_limit, show=True)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        every: torch.Tensor = encoder(images)
        return every[:, 1:]

    features = tokens if own.pool == "patches" else partial(encoder.features, pool=own.pool or learner.pool)
    rows = features_of(features, part, vit, hardware, world, own.batch_size).numpy()
    readable = np.array([name not in part.dataset.skipped for name in part.names])  # read on demand, others stood in for them
    rows, part = rows[readable], Subset(part.dataset, part.places[torch.from_numpy(readable)])
    train_set = [part.dataset.classes[i] if i >= 0 else "" for i in part.labels.tolist()]
    labels = np.array(train_set) if any(train_set) else None
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part{path.suffix}")
    write_table(fresh, np.array(part.names), rows, labels)
    fresh.rename(path)
    for line in skipped_lines(part):
        say(f"skipped {line}")
    say(f"{len(rows):,} images, {' x '.join(map(str, rows.shape[1:]))} numbers each: {path}")
    return path


def write_table(path: Path, names: np.ndarray, rows: np.ndarray, labels: np.ndarray | None) -> None:
    """One row an image, as NPZ or Parquet by the ending."""
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
