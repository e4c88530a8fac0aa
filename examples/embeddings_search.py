"""Finds the images of a folder that look most like one of them.

python examples/embeddings_search.py runs/photos photos/ cats/0007.jpg
"""

import sys
from pathlib import Path

import numpy as np

import unveil


def main(run: str, folder: str, query: str = "", count: int = 5) -> None:
    """Embeds the folder once, into a file in the run folder, and ranks its images by cosine similarity."""
    table = Path(run) / "embeddings.npz"
    if not table.exists():  # remove the file if the folder has changed
        unveil.embed(run, folder, out=table)
    with np.load(table) as columns:
        paths, vectors = columns["path"], columns["embedding"]  # (n,), (n, D)
    vectors = vectors - vectors.mean(axis=0)  # what all images have in common distinguishes none of them
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if query and query not in paths:
        sys.exit(f"{query} is not in {table}: its names are like {paths[0]}")
    chosen = int(np.flatnonzero(paths == query)[0]) if query else 0
    similarity = vectors @ vectors[chosen]
    for i in np.argsort(-similarity)[: count + 1]:
        print(f"{similarity[i]:6.3f}  {paths[i]}{'   (the query)' if i == chosen else ''}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:4])
