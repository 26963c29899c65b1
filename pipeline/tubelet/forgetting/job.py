"""The job behind ``tubelet forget``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.manifest import ManifestSlices, is_manifest, key_of, label_columns, made_from
from tubelet.corpus.split_names import normalise_split
from tubelet.corpus.tombstones import forgotten
from tubelet.corpus.versions import split_version
from tubelet.forgetting.config import ForgetConfig
from tubelet.forgetting.places import Taken, forget_in
from tubelet.inference.source import INSIDE
from tubelet.tracking.lineage import TrainedModel, trained_on

_NAMES = ("uri", "origin_uri", "path", "key")


@dataclass
class ForgetSummary:
    """What went, and what remains to be judged.

    Attributes:
        forgotten: videos.
        rows, copies, pages: see :class:`tubelet.forgetting.places.Taken`.
        models: training runs that read the manifest, or a manifest of copies.
        trained: how many of the videos were in a split that is trained on, as the manifest had them.
    """

    forgotten: int
    trained: int
    rows: int = 0
    copies: int = 0
    pages: int = 0
    models: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        return dataclasses.asdict(self)


class ForgetJob:
    """One run of ``tubelet forget``.

    Raises:
        UserError: a video that the manifest does not have; no manifest.
    """

    def __init__(self, config: ForgetConfig) -> None:
        self.config = config
        for uri in (config.manifest, *config.out):
            if split_version(uri)[1] is not None:
                raise UserError(f"{uri} is one version of a manifest: give the manifest itself")
        self.manifest = storage.normalise_uri(config.manifest)
        self.keys, self.trained = self._find()

    def describe(self) -> str:
        """What :meth:`run` would do; writes nothing."""
        places = ", ".join([self.manifest, *self.config.out])
        return f"would take {len(self.keys)} videos out of {places}, and keep them out"

    def run(self) -> ForgetSummary:
        """Take them out of the outputs, then of the manifest.

        Raises:
            UserError: another job writes to one of them.
        """
        options, taken = self.config.storage, Taken()
        places = [storage.normalise_uri(out) for out in self.config.out]
        for place in places:
            if not storage.exists(place, options):
                raise UserError(f"--out {place} does not exist: check the path")
        # A job that was given a bucket keeps its manifest inside its output, and would bring the video back.
        inside = [storage.join(place, INSIDE) for place in (*places, self.manifest)]
        places += [place for place in inside if is_manifest(place, options)]
        manifests = [self.manifest, *(place for place in places if is_manifest(place, options))]
        for place in dict.fromkeys([*reversed(places), self.manifest]):
            taken.add(forget_in(place, self.keys, options))
        models = trained_on(manifests, self.config.tracking_uri)
        return ForgetSummary(
            forgotten=len(self.keys),
            trained=self.trained,
            rows=taken.rows,
            copies=taken.copies,
            pages=taken.pages,
            models=[_told(model) for model in models],
        )

    def _find(self) -> tuple[list[str], int]:
        """The keys of what is to be forgotten, and how many of these were trained on."""
        options = self.config.storage
        wanted = {name: storage.normalise_uri(name) for name in self.config.uris}
        names = pa.array(sorted({*wanted, *wanted.values()}), pa.string())
        found: dict[str, str] = {}
        trained: set[str] = set()
        for table in ManifestSlices.open(self.manifest, without=["keyframes_s"], options=options):
            present = [name for name in _NAMES if name in table.column_names]
            hits = pc.is_in(table["key"], names)
            for name in present:
                hits = pc.or_(hits, pc.is_in(table[name], names))
            for row in table.filter(hits).to_pylist():
                found |= {row[name]: row["key"] for name in present if row[name] is not None}
                is_train = row["split"] is not None and normalise_split(row["split"]) == "train"
                if is_train and any(row[head] for head in label_columns(table)):
                    trained.add(row["key"])
        source = made_from(self.manifest, options).get("src")
        earlier = forgotten(self.manifest, options)
        keys = []
        for name, uri in wanted.items():
            key = found.get(name) or found.get(uri)
            if key is None:
                key = next((one for one in self._candidates(name, uri, source) if one in earlier), None)
            if key is None:
                raise UserError(
                    f"{name} is not in {self.manifest}\n"
                    "give the uri, the path or the key as the manifest has it"
                )
            keys.append(key)
        return list(dict.fromkeys(keys)), len(trained)

    @staticmethod
    def _candidates(name: str, uri: str, source: str | None) -> list[str]:
        """Keys that a video which was forgotten before may have had."""
        paths = [name]
        if source is not None and uri.startswith(f"{source}/"):
            paths.append(uri.removeprefix(f"{source}/"))
        return [name, *map(key_of, paths)]


def _told(model: TrainedModel) -> dict[str, Any]:
    return dataclasses.asdict(model) | {"versions": list(model.versions)}
