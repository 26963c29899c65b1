"""A model in this process: videos in, rows out, without Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from tubelet import storage
from tubelet.clips import Batch, ClipDecoder, parse_views
from tubelet.config import UserError
from tubelet.corpus.manifest import key_of
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.forward import Forward
from tubelet.inference.predictor import rows_of
from tubelet.inference.schema import REQUEST_SCHEMA, EmbeddingType
from tubelet.inference.shipping import Answers, model_job
from tubelet.storage import StorageOptions

VideoSource = str | os.PathLike[str] | bytes
Row = dict[str, Any]

# Videos whose clips lie in memory together.
_AT_ONCE = 8


class LocalModel:
    """A model that labels videos where it was loaded; owns a killable decode process.

    Args:
        bundle: the model; its weights are changed in place (the normalisation is folded into them).
        options: how to reach the videos.
    """

    def __init__(self, bundle: ModelBundle, options: StorageOptions | None = None) -> None:
        self.bundle = bundle
        self._options = options or StorageOptions()
        self._decoders: dict[tuple[int, int], ClipDecoder] = {}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._forward = Forward(bundle.model, device, multilabel=bundle.multilabel)

    @property
    def labels(self) -> dict[str, list[str]]:
        """The names of the classes, by head."""
        return self.bundle.labels

    def predict(
        self,
        sources: VideoSource | Iterable[VideoSource],
        *,
        views: str | tuple[int, int] = (1, 1),
        topk: int = 5,
        scores: bool = False,
        embedding: EmbeddingType | None = None,
    ) -> list[Row]:
        """Label one or many videos.

        Args:
            sources: paths, URIs, or the bytes of videos.
            views: temporal clips x spatial crops of each video, averaged, such as ``"4x3"``.
            topk: labels per row, the best first.
            scores: keep the scores of all classes.
            embedding: keep the pooled features, of this type.

        Returns:
            One row per source in their order, as ``tubelet label`` writes them; one that fails has
            ``status='error'`` and a reason. A path's key is that of its name; the key of bytes is their hash,
            and they have no ``uri``.

        Raises:
            ValueError: ``views`` that are none.
        """
        cut = parse_views(views) if isinstance(views, str) else views
        answers = Answers(topk, scores, embedding)
        job = model_job(self.bundle, self.bundle.clip.sampling_of(cut), answers)
        decoder, names = self._decoder(cut), job.shape.schema().names
        one = isinstance(sources, (str, os.PathLike, bytes))
        given: list[VideoSource] = [sources] if one else list(sources)  # type: ignore[list-item, arg-type]
        rows: list[Row] = []
        for start in range(0, len(given), _AT_ONCE):
            requests = [self._request(source) for source in given[start : start + _AT_ONCE]]
            rows += rows_of(job, self._forward, decoder(_batch(requests))).select(names).to_pylist()
        return rows

    def close(self) -> None:
        """End the decode processes; the next call of :meth:`predict` starts another."""
        for decoder in self._decoders.values():
            decoder.close()

    def _decoder(self, views: tuple[int, int]) -> ClipDecoder:
        if views not in self._decoders:
            self._decoders[views] = ClipDecoder(self.bundle.clip, views=views, storage=self._options)
        return self._decoders[views]

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, source: VideoSource) -> Row:
        if isinstance(source, bytes):
            name = blake2b(source, digest_size=16).hexdigest()
            return {"key": name, "etag": name, "source": source}
        uri = os.fspath(source)
        row: Row = {"key": key_of(uri.rstrip("/").rpartition("/")[2]), "uri": uri}
        # What is wrong with an address becomes the row's reason in the decode stage.
        try:
            row["uri"] = storage.normalise_uri(uri)
            info = storage.stat(uri, self._options)
        except (UserError, OSError):
            info = None
        return row if info is None else row | {"etag": info.etag, "size": info.size_bytes}


def _batch(requests: Sequence[Row]) -> Batch:
    """The columns of ``REQUEST_SCHEMA``, and ``source``."""
    rest = {"window": 0, "models": 1, "size": -1, "clip_start_s": np.nan, "clip_end_s": np.nan}
    rows = [rest | {"request": i} | request for i, request in enumerate(requests)]
    columns: Batch = {}
    for name in (*REQUEST_SCHEMA.names, "source"):
        values = [row.get(name) for row in rows]
        columns[name] = np.empty(len(rows), object) if name in _OBJECTS else np.array(values)
        columns[name][:] = values
    return columns


_OBJECTS = ("key", "uri", "etag", "source")
