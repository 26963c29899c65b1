"""The page about a corpus: what a manifest holds, what is broken and why, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from tubelet.corpus.manifest import ManifestSlices, label_columns
from tubelet.corpus.selection import label_values
from tubelet.storage.pinned import retry_if_changed
from tubelet.video import Status

# Classes beyond these are counted together.
_MOST_CLASSES = 200
_MOST_EXAMPLES = 20
_DUPLICATE = "duplicate_of"
_NEEDED = {
    *("key", "segment", "uri", "path", "etag", "size", "status", "error_code", "error", "split"),
    *("codec", "width", "height", "duration_s", _DUPLICATE),
}
# The others of a manifest's own columns: the keyframes alone are larger than all that is counted.
_NOT_NEEDED = frozenset(
    {"keyframes_s", "frames", "fps", "vfr", "rotation", "start_s", "attempts", "indexed_at", "corrected_at"}
)
_SIDES = (0, 144, 240, 360, 480, 720, 1080, 1440, 2160)
_SECONDS = (0, 1, 2, 5, 10, 30, 60, 300, 1800, 3600)
_MIB = (0, 0.1, 1, 10, 100, 1000, 10_000)


class Bar(NamedTuple):
    """A line of a table of counts."""

    name: str
    videos: int
    share: float


class Survey:
    """Counts over the rows of a manifest, a slice at a time."""

    def __init__(self) -> None:
        self.videos = self.segments = 0
        self.statuses: Counter[str] = Counter()
        self.seconds = 0.0
        self.size_bytes = 0
        self.splits: Counter[str] = Counter()
        self.codecs: Counter[str] = Counter()
        self.sides: Counter[int] = Counter()
        self.durations: Counter[int] = Counter()
        self.sizes: Counter[int] = Counter()
        self.classes: dict[str, Counter[str]] = {}
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, str]] = {}
        self.duplicates = 0
        self.twins: list[tuple[str, str]] = []
        self._before = ""

    def add(self, table: pa.Table) -> None:
        """Count the rows of a slice; those of one video stand together."""
        live = table.filter(pc.not_equal(table["status"], str(Status.GONE)))
        for head in label_columns(live):
            values = pc.value_counts(pc.drop_null(label_values(live, head))).to_pylist()
            counts = self.classes.setdefault(head, Counter())
            counts.update({item["values"]: item["counts"] for item in values})
        self.segments += pc.sum(pc.greater(live["segment"], 0)).as_py() or 0
        videos = live.filter(pa.array(self._first_of_each(live["key"].to_pylist()), pa.bool_()))
        self.statuses.update(videos["status"].to_pylist())
        self.size_bytes += pc.sum(videos["size"]).as_py() or 0
        ok = videos.filter(pc.equal(videos["status"], str(Status.OK)))
        self.videos += ok.num_rows
        self.splits.update("none" if split is None else split for split in ok["split"].to_pylist())
        self.codecs.update(codec or "not known" for codec in ok["codec"].to_pylist())
        self.seconds += pc.sum(ok["duration_s"]).as_py() or 0.0
        self.sides.update(_bins(pc.min_element_wise(ok["width"], ok["height"]), _SIDES))
        self.durations.update(_bins(ok["duration_s"], _SECONDS))
        self.sizes.update(_bins(pc.divide(pc.cast(ok["size"], pa.float64()), 1 << 20), _MIB))
        self._errors(videos.filter(pc.equal(videos["status"], str(Status.ERROR))))
        if _DUPLICATE in ok.column_names:
            found = ok.filter(pc.is_valid(ok[_DUPLICATE]))
            self.duplicates += found.num_rows
            left = _MOST_EXAMPLES - len(self.twins)
            some = found.slice(0, max(left, 0)).select(["path", _DUPLICATE]).to_pylist()
            self.twins += [(row["path"], row[_DUPLICATE]) for row in some]

    def _first_of_each(self, keys: list[str]) -> list[bool]:
        before = [self._before, *keys[:-1]]
        self._before = keys[-1] if keys else self._before
        return [key != last for key, last in zip(keys, before, strict=True)]

    def _errors(self, rows: pa.Table) -> None:
        for row in rows.select(["path", "error_code", "error"]).to_pylist():
            code = row["error_code"] or "not known"
            self.errors[code] += 1
            self.examples.setdefault(code, (row["path"], row["error"] or ""))


def _bins(column: Any, edges: tuple[float, ...]) -> dict[int, int]:
    """How many values lie from each edge on; what is not known at -1."""
    values = np.asarray(pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy())
    places = np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right") - 1)
    found, counts = np.unique(places, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def survey(manifest: str) -> Survey:
    """Count what is at ``manifest``."""

    def count() -> Survey:
        slices = ManifestSlices.open(manifest, without=_NOT_NEEDED)
        found = Survey()
        for table in slices:
            heads = label_columns(table)
            found.add(table.select([name for name in table.column_names if name in _NEEDED or name in heads]))
        return found

    return retry_if_changed(count)


def corpus_page(manifest: str, told: Mapping[str, Any]) -> str:
    """The page about ``manifest`` as HTML.

    Args:
        manifest: its URI.
        told: the summary of the index job: ``skipped_by``, ``warnings``.
    """
    found = survey(manifest)
    loader = jinja2.PackageLoader("tubelet.review", "static")
    environment = jinja2.Environment(loader=loader, autoescape=True)
    style = "\n".join(loader.get_source(environment, name)[0] for name in ("page.css", "corpus.css"))
    paths = _paths_of(manifest, {key for _, key in found.twins})
    tables = [
        (f"Classes of {head}" if len(found.classes) > 1 else "Classes", _bars(counts))
        for head, counts in found.classes.items()
    ]
    tables += [("Splits", _bars(found.splits)), ("Codecs", _bars(found.codecs))]
    tables += [
        ("Short side", _binned(found.sides, _SIDES, "px")),
        ("Duration", _binned(found.durations, _SECONDS, "s")),
        ("File size", _binned(found.sizes, _MIB, "MiB")),
    ]
    return environment.get_template("corpus.html.j2").render(
        title=manifest.rstrip("/").rpartition("/")[2],
        manifest=manifest,
        tiles=_tiles(found),
        notes=list(told.get("warnings") or ()),
        tables=[(name, bars) for name, bars in tables if bars],
        errors=[(code, count, *found.examples[code]) for code, count in found.errors.most_common()],
        not_video=found.statuses[str(Status.NOT_VIDEO)],
        duplicates=[(path, paths.get(key, key)) for path, key in found.twins],
        skipped=sorted((told.get("skipped_by") or {}).items(), key=lambda item: -item[1]),
        style=Markup(style),  # noqa: S704  # our own files
    )


def _tiles(found: Survey) -> list[tuple[str, str]]:
    hours = found.seconds / 3600
    length = f"{hours:,.1f} h" if hours >= 1 else f"{found.seconds / 60:,.1f} min"
    tiles = [("videos", f"{found.videos:,}"), ("length", length), ("bytes", _bytes(found.size_bytes))]
    tiles.append(("errors", f"{sum(found.errors.values()):,}"))
    if found.segments:
        tiles.append(("segments", f"{found.segments:,}"))
    if found.duplicates:
        tiles.append(("duplicates", f"{found.duplicates:,}"))
    return tiles


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _paths_of(manifest: str, keys: set[str]) -> dict[str, str]:
    """The paths of some videos."""
    if not keys:
        return {}
    found: dict[str, str] = {}
    wanted = pa.array(sorted(keys))
    for table in ManifestSlices.open(manifest, without=_NOT_NEEDED):
        rows = table.filter(pc.is_in(table["key"], wanted)).select(["key", "path"]).to_pylist()
        found |= {row["key"]: row["path"] for row in rows}
    return found


def _bars(counts: Counter[str]) -> list[Bar]:
    most = max(counts.values(), default=1)
    bars = [Bar(name, count, count / most) for name, count in counts.most_common(_MOST_CLASSES)]
    others = len(counts) - len(bars)
    if others > 0:
        left = counts.total() - sum(bar.videos for bar in bars)
        bars.append(Bar(f"{others} more", left, min(1.0, left / most)))
    return bars


def _binned(counts: Mapping[int, int], edges: tuple[float, ...], unit: str) -> list[Bar]:
    most = max(counts.values(), default=1)
    return [Bar(_range(place, edges, unit), counts[place], counts[place] / most) for place in sorted(counts)]


def _range(place: int, edges: tuple[float, ...], unit: str) -> str:
    if place < 0:
        return "not known"
    if place + 1 == len(edges):
        return f"{edges[place]:g} {unit} and more"
    return f"{edges[place]:g} to {edges[place + 1]:g} {unit}"
