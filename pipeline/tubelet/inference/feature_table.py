"""The table of features: a row for each clip of a video, or for one that failed; key ``(key, window, clip)``.

What lies in it is named by its :class:`FeatureSpec`, so that tables of other samplings or encoders lie beside
it and a run with other labels finds all that it needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field

from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.config import Settings, UserError
from tubelet.corpus.versions import split_version
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import HOW, WHO, EmbeddingType
from tubelet.inference.sink import part_name, part_numbers
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.storage.pinned import ParquetSource, retry_if_changed
from tubelet.video import Status
from tubelet.vivit import ViViT

Positive = Annotated[int, Field(ge=1)]

FEATURES = "frames"
"""The column of frames' features: fixed-size lists, row-major ``(frames, 2, dim)``."""
EMBEDDING = "embedding"
"""The column of a clip's pooled features: fixed-size lists of the model's pooled width."""

_SPEC_KEY = b"tubelet.features"
_VERSION = 1
_SLICE_ROWS = 256
_PLACE = ["key", "window", "clip"]

# Of a config, what decides the features of a frame; those that other variants of the same encoder share.
_ENCODER_FIELDS = (
    *("height", "width", "tubelet", "tokeniser", "dim", "layers", "heads", "mlp", "mean", "std"),
    *("layer_norm_eps", "activation", "has_cls", "registers", "embed_norm", "fc_norm", "rope"),
)


class FeatureSpec(Settings):
    """What features of frames are: of which encoder, of which frames.

    Attributes:
        encoder: names the spatial encoder (see :func:`encoder_hash`).
        clip: how clips are cut.
        clips: of each video, spread over it.
        frames: time indices of a clip.
        dim: width of the encoder.
        dtype: of the values.
    """

    encoder: str
    clip: ClipSpec
    clips: Positive = 1
    frames: Positive
    dim: Positive
    dtype: EmbeddingType = "float32"

    @classmethod
    def of(
        cls, model: ViViT, clip: ClipSpec, *, clips: int = 1, dtype: EmbeddingType = "float32"
    ) -> FeatureSpec:
        """What ``model`` (Model 2 or average) needs to go on from frames.

        Raises:
            UserError: the model sees several frames at once.
        """
        config = model.config
        if not config.factorised_encoder:
            raise UserError(
                f"{config.variant} has no features of single frames: take a model2, average or image model"
            )
        return cls(
            encoder=encoder_hash(model),
            clip=clip,
            clips=clips,
            frames=config.grid[0],
            dim=config.dim,
            dtype=dtype,
        )

    @property
    def name(self) -> str:
        """The name of their folder: the same wherever the same features are made."""
        text = json.dumps({"version": _VERSION, **self.model_dump(mode="json")}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def sampling(self) -> str:
        """One word for the rows: what of a video the encoder saw."""
        return self.clip.sampling_of((self.clips, 1))

    @property
    def width(self) -> int:
        """Values of a clip."""
        return self.frames * 2 * self.dim


def encoder_hash(model: ViViT) -> str:
    """Names the spatial encoder of a Model 2 or average by what decides the features of a frame.

    Neither the temporal transformer nor the head is part of it, nor whether the model itself goes on from the
    class token or the patches' mean.
    """
    config = model.config
    fields = {name: getattr(config, name) for name in _ENCODER_FIELDS}
    kept = config.classifier in ("token", "gap", "token_gap")
    fields["pool"] = "both" if kept else config.classifier
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for part in ("embedding", "encoder"):
        for name, tensor in sorted(getattr(model, part).state_dict().items()):
            digest.update(f"{part}.{name}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TableShape:
    """The columns of a table of features.

    Attributes:
        column: :data:`FEATURES` or :data:`EMBEDDING`.
        width: values of a row.
        dtype: of the values.
        spec: kept in each file's footer.
    """

    column: Literal["frames", "embedding"]
    width: int
    dtype: EmbeddingType
    spec: FeatureSpec | None = None

    def schema(self) -> pa.Schema:
        """The Parquet schema."""
        kind = pa.float16() if self.dtype == "float16" else pa.float32()
        metadata = None
        if self.spec is not None:
            text = json.dumps({"version": _VERSION, **self.spec.model_dump(mode="json")}, sort_keys=True)
            metadata = {_SPEC_KEY: text.encode()}
        return pa.schema([*_WHO, pa.field(self.column, pa.list_(kind, self.width)), *_HOW], metadata=metadata)


# As predictions have them, but for a row per clip; a window is the segment's number, 0 for a whole video.
_WHO = (*WHO[:2], pa.field("clip", pa.int32(), nullable=False), *WHO[2:])
_HOW = tuple(one for one in HOW if one.name != "views")


@dataclass(frozen=True)
class FeatureSet:
    """Features of all clips that could be had, by key, segment and clip.

    Attributes:
        frames: float32 ``(clips, frames, 2, dim)``; axis 2: class token and mean of the patch tokens (see
            :meth:`tubelet.vivit.ViViT.frame_features`).
        keys, etags, uris: of each clip's video.
        segments: int32 ``(clips,)``, 0 for a whole video.
        clip_index: int32 ``(clips,)``, number of the clip in its video.
    """

    frames: npt.NDArray[np.float32]
    keys: list[str]
    segments: npt.NDArray[np.int32]
    clip_index: npt.NDArray[np.int32]
    etags: list[str]
    uris: list[str]

    def clips_of(self, manifest: pa.Table) -> list[npt.NDArray[np.int64]]:
        """The clips of each row of ``manifest`` (``key, segment, etag``), of the very content that it names.

        Returns:
            Indices into the axes of clips; empty where there are none.
        """
        found: dict[tuple[str, int, str], list[int]] = {}
        for i, place in enumerate(zip(self.keys, self.segments.tolist(), self.etags, strict=True)):
            found.setdefault(place, []).append(i)
        rows = zip(*(manifest[name].to_pylist() for name in ("key", "segment", "etag")), strict=True)
        return [
            np.array(found.get((key, segment or 0, etag or ""), ()), np.int64) for key, segment, etag in rows
        ]


def features_of(manifest: str) -> str:
    """Where features lie that nobody chose a place for: beside the manifest's rows."""
    manifest, _ = split_version(storage.normalise_uri(manifest))
    if manifest.endswith(".parquet"):
        return storage.join(storage.parent(manifest), f"_{storage.name_of(manifest)}.features")
    return storage.join(manifest, "_features")


def read_features(uri: str, spec: FeatureSpec, options: StorageOptions = DEFAULT_OPTIONS) -> FeatureSet:
    """The features of ``spec`` below ``uri``, ordered by key, segment and clip; failed videos are left out.

    Memory: the features themselves and a few hundred rows.

    Raises:
        UserError: there are none; a file is damaged.
    """
    files = OutputFiles(storage.join(uri, spec.name), options.for_writing())
    return retry_if_changed(lambda: _read(files, spec))


def _read(files: OutputFiles, spec: FeatureSpec) -> FeatureSet:
    numbers = part_numbers(files.names())
    if not numbers:
        raise UserError(f"no features at {files.uri}: they are not computed yet")
    sources = [files.open(part_name(number)) for number in numbers]
    places = _places(sources)
    order = np.lexsort((places["clip"], places["window"], places["key"]))
    order = order[places["status"][order] != Status.ERROR.value]
    rank = np.full(len(places["key"]), -1, np.int64)
    rank[order] = np.arange(len(order))
    frames = np.empty((len(order), spec.frames, 2, spec.dim), np.float32)
    for at, values in _values(sources):
        to = rank[at : at + len(values)]
        frames[to[to >= 0]] = values[to >= 0].reshape(-1, *frames.shape[1:])
    return FeatureSet(
        frames,
        places["key"][order].tolist(),
        places["window"][order],
        places["clip"][order],
        places["etag"][order].tolist(),
        places["uri"][order].tolist(),
    )


def _places(sources: Sequence[ParquetSource]) -> dict[str, npt.NDArray[Any]]:
    names = [*_PLACE, "etag", "uri", "status"]
    table = pa.concat_tables([source.read(names).select(names) for source in sources])
    return {name: table[name].to_numpy(zero_copy_only=False) for name in names}


def _values(sources: Sequence[ParquetSource]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Features ``(rows, values)`` of some rows, and the number of the first one among all rows."""
    at = 0
    for source in sources:
        for table in source.slices([FEATURES], _SLICE_ROWS):
            column = table[FEATURES].combine_chunks()
            lists = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            yield at, lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
            at += len(lists)
