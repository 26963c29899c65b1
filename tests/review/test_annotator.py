"""What the queue saves: a simulated annotator on real clips, who labels what the queue shows, or any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import SHARED
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import read_manifest
from tubelet.inference.embedding import EmbedConfig, EmbedJob
from tubelet.inference.output import parquet_bytes
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import part_name
from tubelet.review.config import Queue
from tubelet.review.queues import choose, read_columns
from tubelet.storage import StorageOptions

CLIPS = SHARED / "data/actions/drone_track_visible4"
WEIGHTS = SHARED / "weights/vit_s14_image.safetensors"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not (CLIPS.is_dir() and WEIGHTS.is_file()), reason="needs the shared real videos"),
]

SEEDS, FIRST, ROUND, LAST = 5, 12, 8, 100
Ints = npt.NDArray[np.int64]


class Annotator:
    """Labels the pool in rounds, and fits a head on the frozen features of what has labels.

    Args:
        features: float32 ``(clips, dim)``.
        truth: the classes.
        pool, test: numbers of clips.
    """

    def __init__(self, features: Any, truth: Any, pool: Ints, test: Ints, folder: Path) -> None:
        self.features, self.truth, self.pool, self.test, self.folder = features, truth, pool, test, folder
        # One of each class, and any others.
        self.has = [int(next(i for i in pool if truth[i] == name)) for name in np.unique(truth)]
        self.has += [int(i) for i in pool if i not in self.has][: FIRST - len(self.has)]

    def curve(self, *, by_queue: bool) -> list[float]:
        """Accuracy on the test clips after each round."""
        found = []
        while True:
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
            head.fit(self.features[self.has], self.truth[self.has])
            found.append(float((head.predict(self.features[self.test]) == self.truth[self.test]).mean()))
            if len(self.has) + ROUND > LAST:
                return found
            left = [int(i) for i in self.pool if i not in self.has]
            self.has += self._shown(head, left) if by_queue else left[:ROUND]

    def _shown(self, head: Any, left: list[int]) -> list[int]:
        """What the page of the queue shows of predictions for the clips that have no label yet."""
        names = head.classes_
        rows = []
        for i, probabilities in zip(left, head.predict_proba(self.features[left]), strict=True):
            order = np.argsort(-probabilities)
            rows.append(
                {
                    "key": str(i),
                    "window": 0,
                    "status": "ok",
                    "label": names[order[0]],
                    "score": probabilities[order[0]],
                    "topk_labels": list(names[order]),
                    "topk_scores": list(probabilities[order]),
                    "embedding": self.features[i],
                }
            )
        schema = RowShape(embedding="float32", embedding_dim=self.features.shape[1]).schema()
        (self.folder / part_name(0)).write_bytes(parquet_bytes(table_of(rows, schema)))
        queue = Queue("uncertain", ROUND)
        return [int(key) for key, _ in choose(queue, str(self.folder), None, StorageOptions())]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Features and classes of the labelled clips of the training dates."""
    folder = tmp_path_factory.mktemp("annotator")
    manifest, out = str(folder / "manifest"), str(folder / "embeddings")
    labels = (f"{CLIPS}.csv",)
    index_corpus(IndexConfig(src=str(CLIPS), out=manifest, labels=labels, split="column:split"))
    EmbedJob(EmbedConfig(source=manifest, model=str(WEIGHTS), out=out)).run(lambda: None)
    found = read_columns(out, ["key", "status", "embedding"], StorageOptions()).to_pylist()
    vectors = {row["key"]: row["embedding"] for row in found if row["status"] == "ok"}
    rows = [row for row in read_manifest(manifest).to_pylist() if row["split"] == "train" and row["label"]]
    rows = [row for row in rows if row["key"] in vectors]
    features = np.array([vectors[row["key"]] for row in rows], np.float32)
    return features, np.array([row["label"] for row in rows])


def test_the_queue_saves_two_labels_of_five(embedded: tuple[Any, Any], tmp_path: Path) -> None:
    features, truth = embedded
    curves: dict[bool, list[list[float]]] = {True: [], False: []}
    for seed in range(SEEDS):
        split = StratifiedShuffleSplit(1, test_size=0.4, random_state=seed)
        pool, test = next(split.split(features, truth))
        pool = np.random.default_rng(seed).permutation(pool)
        for by_queue, found in curves.items():
            found.append(Annotator(features, truth, pool, test, tmp_path).curve(by_queue=by_queue))
    queue, chance = (np.mean(curves[by_queue], axis=0) for by_queue in (True, False))
    labels = np.arange(FIRST, LAST + 1, ROUND)
    for count, by_queue, by_chance in zip(labels, queue, chance, strict=True):
        print(f"labels {count}: by the queue {by_queue:.3f}, by chance {by_chance:.3f}")
    needed = labels[np.flatnonzero(queue >= chance[-1])[0]]
    print(f"by chance {chance[-1]:.3f} with {labels[-1]} labels; by the queue with {needed}")
    assert needed <= 0.6 * labels[-1]
