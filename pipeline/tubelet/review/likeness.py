"""Which clips are alike by their embeddings: a map of all that are shown, and the nearest of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from tubelet.review.queues import Floats

NEIGHBOURS = 12
# t-SNE takes half a minute for so many rows on two cores; more are projected on two directions.
_MOST_FOR_TSNE = 4000
_FEWEST = 8
_COMPONENTS = 50


def map_points(embeddings: Floats) -> list[list[float]]:
    """Where each clip is on the map: ``(rows, 2)``, each coordinate from 0 to 1.

    Args:
        embeddings: float32 ``(rows, dim)`` of length 1.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows, dim = embeddings.shape
    if rows < _FEWEST:
        return [[0.5, 0.5]] * rows
    many = rows > _MOST_FOR_TSNE
    points = PCA(2 if many else min(_COMPONENTS, rows, dim), random_state=0).fit_transform(embeddings)
    if not many:
        perplexity = min(30.0, (rows - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.maximum(high - low, 1e-12)
    return [[round(float(x), 4), round(float(y), 4)] for x, y in scaled]


def nearest(embeddings: Floats) -> list[list[int]]:
    """The numbers of the clips most like each one, the nearest first, at most twelve.

    Args:
        embeddings: float32 ``(rows, dim)`` of length 1.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS + 1, len(embeddings))
    search: Any = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(embeddings)
    found = search.kneighbors(embeddings, return_distance=False)
    return [[int(other) for other in row if other != i][:NEIGHBOURS] for i, row in enumerate(found)]
