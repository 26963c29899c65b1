"""The labelled rows of a manifest with the features of their frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tubelet.corpus.selection import select
from tubelet.decode_limits import DecodeLimits
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.features import (
    FeatureSet,
    FeatureSettings,
    FeatureSpec,
    compute_features,
    features_of,
    read_features,
)
from tubelet.storage import StorageOptions
from tubelet.training.examples import Examples
from tubelet.training.few.candidates import Frames
from tubelet.training.few.task import Ints, Task


@dataclass(frozen=True)
class Given:
    """The rows that features could be had of: their features, what is to be told apart, who they are.

    Attributes:
        frames: ``(n, frames, 2, dim)``.
        about, table: what the manifest says of the rows, and what the decoder needs.
        lost: rows that no features could be had of.
    """

    frames: Frames
    task: Task
    about: pa.Table
    table: pa.Table
    lost: int = 0


@dataclass(frozen=True)
class Wanted:
    """Which features of a manifest: those of the rows of ``splits`` that have a label in all ``columns``."""

    manifest: str
    place: str | None
    options: StorageOptions
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    limits: DecodeLimits

    def compute(
        self,
        bundle: ModelBundle,
        spec: FeatureSpec,
        start_ray: Callable[[], None],
        workers: int | None,
        max_error_rate: float,
    ) -> None:
        """Make those that are not there yet."""
        compute_features(
            self.manifest,
            bundle,
            spec,
            self.place,
            start_ray=start_ray,
            select=_Labelled(self.splits, self.columns),
            settings=FeatureSettings(
                max_error_rate=max_error_rate, workers=workers, storage=self.options, limits=self.limits
            ),
        )

    def read(self, spec: FeatureSpec) -> FeatureSet:
        """All that are there, also of other rows."""
        return read_features(self.place or features_of(self.manifest), spec, self.options)


@dataclass(frozen=True)
class _Labelled:
    """Keeps the rows of some splits that have all labels."""

    splits: tuple[str, ...]
    columns: tuple[str, ...]

    def __call__(self, rows: pa.Table) -> pa.Table:
        parts = []
        for split in self.splits:
            part = rows
            for column in self.columns:
                part = select(part, split, labelled=True, head=column)
            parts.append(part)
        return pa.concat_tables(parts)


def given_features(features: FeatureSet, examples: Examples, *, multilabel: bool) -> Given:
    """The rows of ``examples`` with the features of their first clip."""
    clips = features.clips_of(examples.about)
    rows = np.array([i for i, found in enumerate(clips) if len(found)], np.int64)
    frames = features.frames[[int(clips[i][0]) for i in rows]]
    about = examples.about.take(pa.array(rows))
    keys, groups = about["key"].to_pylist(), about["group"].to_pylist()
    # A video without a group is one by itself, with all its segments.
    names = [group if group is not None else f"video {key}" for group, key in zip(groups, keys, strict=True)]
    targets = {head: values[rows] for head, values in examples.targets.items()}
    task = Task(examples.labels, targets, np.array(names, object), multilabel)
    return Given(frames, task, about, examples.table.take(pa.array(rows)), len(examples) - len(rows))


def videos_of(about: pa.Table) -> Ints:
    """The number of each row's video, int64 ``(n,)``."""
    keys = about["key"].to_numpy(zero_copy_only=False).astype(str)
    return np.asarray(np.unique(keys, return_inverse=True)[1], np.int64)
