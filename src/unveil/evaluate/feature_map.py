"""Features in two dimensions, to look at: principal components, and t-SNE (van der Maaten and Hinton, 2008)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

COMPONENTS = 50
"""Principal components that t-SNE starts from: more hold mostly noise, and take longer."""


class FeatureMap(NamedTuple):
    """Two places for each of n images."""

    pca: Float[np.ndarray, "n 2"]
    explained: float
    """The share of the variance that the two principal components hold."""
    tsne: Float[np.ndarray, "n 2"] | None
    """None for fewer than four images."""


def feature_map(rows: Float[np.ndarray, "n D"]) -> FeatureMap:
    """Maps features of unit length, in the same way at every call. 1,000 rows take two seconds of a core."""
    from sklearn.decomposition import PCA  # takes seconds to import
    from sklearn.manifold import TSNE

    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    components = min(COMPONENTS, *rows.shape)
    pca = PCA(components, svd_solver="full", random_state=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # if all rows are the same
        reduced = pca.fit_transform(rows.astype(np.float64))
    places = np.zeros((len(rows), 2))
    places[:, : min(2, components)] = reduced[:, :2]
    share = float(np.nan_to_num(pca.explained_variance_ratio_[:2].sum()))
    if len(rows) < 4 or np.ptp(reduced) == 0:
        return FeatureMap(places.astype(np.float32), share, None)
    start = reduced[:, :2] / reduced[:, 0].std() * 1e-4 if components > 1 else "random"
    tsne = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init=start, max_iter=500, random_state=0)
    return FeatureMap(places.astype(np.float32), share, tsne.fit_transform(reduced.astype(np.float32)).astype(np.float32))
