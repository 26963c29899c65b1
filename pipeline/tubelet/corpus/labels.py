r"""Labels of the videos: from label files, from corrections, and from the names of class folders.

A label table is a CSV (``,``, ``;`` or tab; UTF-8), Parquet or JSON Lines table, or a JSON list, with a row
per video or per part of one:

- ``path`` (relative to SRC, or to the folder of the label file; also called ``file_name``, ``filename``,
  ``video`` or ``video_path``; without an extension it may be the bare name), ``uri`` or ``key``;
- ``label``, and for models with several heads ``label_<head>``, one column each. A column in which cells hold
  ``|`` is multi-label: ``run|jump`` is the list ``[run, jump]``. An empty cell is no label;
- where present ``clip_start_s`` and ``clip_end_s``: the row labels this part of the video, a segment;
- where present ``split`` and ``group`` (the person or the scene: a group never straddles two splits).

With columns ``window`` and ``at`` it is a table of corrections. Other layouts, as published sets and tools
have them, are recognised (see ``tubelet.corpus.formats``).

A row names an object by its exact path or URI; failing that, the comparison is repeated with both sides in
Unicode NFC, ``\`` as ``/``, without leading ``./`` or ``/``, and without spaces at the ends of the cell.
Labels are Unicode NFC, whatever form the file or the folder has.

Where several sources speak of one clip, corrections win (the newest ``at`` first), then the last label file,
then the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.corrections import Corrections
from tubelet.corpus.label_files import FileLabels
from tubelet.corpus.label_folders import FolderLabels
from tubelet.corpus.label_source import NO_LABELS, Examples, LabelRow, Labels, NoLabels, Segment, Value
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions

__all__ = ["FOLDERS", "NO_LABELS", "Examples", "FileLabels", "LabelRow", "Labels", "NoLabels", "load_labels"]

FOLDERS = "folders"


class MergedLabels:
    """Labels from several sources, the later ones over the earlier, and corrections over all."""

    def __init__(self, sources: Sequence[Labels], corrections: Sequence[FileLabels]) -> None:
        self._sources = sources
        self._corrections = Corrections(one for file in corrections for one in file.found.annotations)
        every = [*sources, *corrections]
        names = list(dict.fromkeys(name for one in every for name in one.heads))
        self.heads = {name: any(one.heads.get(name, False) for one in every) for name in names}
        self.split_column = next((s.split_column for s in reversed(sources) if s.split_column), None)
        self.columns = list(dict.fromkeys(name for one in sources for name in getattr(one, "columns", [])))
        self.files = frozenset().union(*(one.files for one in every))

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """See :meth:`Labels.lookup`."""
        row = NO_LABELS
        for source in self._sources:
            row = _merged(row, source.lookup(info))
        row = self._corrections.apply(info, row)
        segments = tuple(replace(one, values=self._conformed(one.values)) for one in row.segments)
        return replace(row, values=self._conformed(row.values), segments=segments)

    def check(self) -> list[str]:
        """See :meth:`Labels.check`; of several sources, one that matches nothing is told of."""
        warnings: list[str] = []
        failed: list[UserError] = []
        for source in self._sources:
            try:
                warnings += source.check()
            except UserError as error:
                failed.append(error)
        if self._corrections.count and not self._corrections.matched:
            failed.append(
                UserError(f"none of the {self._corrections.count} corrections concerns an object here")
            )
        if failed and len(failed) == len(self._sources) + bool(self._corrections.count):
            raise failed[0]
        missed = self._corrections.count - self._corrections.matched
        if missed and self._corrections.matched:
            warnings.append(f"{missed} of {self._corrections.count} corrections concern no object here")
        return warnings + [" ".join(str(error).splitlines()) for error in failed]

    def _conformed(self, values: dict[str, Value]) -> dict[str, Value]:
        """Where one source has lists in a column, all have."""
        return {
            name: [value] if isinstance(value, str) and self.heads[name] else value
            for name, value in values.items()
        }


def load_labels(
    source: str | Sequence[str] | None, src: str, options: StorageOptions, split_column: str = "split"
) -> Labels:
    """Labels from ``source``: label files, corrections, ``folders``; the later ones over the earlier.

    Args:
        source: what to read; None: nothing.
        src: the corpus.
        options: how to reach it; a label file in another bucket may need credentials where it needs none.
        split_column: the column of a table that splits are to be taken from.

    Raises:
        UserError: see :class:`FileLabels`.
    """
    names = [] if source is None else [source] if isinstance(source, str) else list(source)
    loaded: list[Labels] = [
        FileLabels(storage.normalise_uri(name), src, _options_for(name, src, options), split_column)
        for name in names
        if name != FOLDERS
    ]
    if FOLDERS in names:
        loaded.insert(0, FolderLabels(src, options))
    files = [one for one in loaded if isinstance(one, FileLabels) and one.found.corrections]
    others = [one for one in loaded if one not in files]
    if len(others) == 1 and not files:
        return others[0]
    return MergedLabels(others, files) if loaded else NoLabels()


def _options_for(name: str, src: str, options: StorageOptions) -> StorageOptions:
    if not storage.is_remote(name):
        return options
    same = storage.is_remote(src) and src.split("/")[2] == name.split("/")[2]
    return options if same else DEFAULT_OPTIONS


def _merged(before: LabelRow, after: LabelRow) -> LabelRow:
    """``after`` over ``before``, as far as it says anything."""
    segments = list(before.segments)
    for one in after.segments:
        same = next((n for n, s in enumerate(segments) if _is_same_part(s, one, before)), None)
        if same is None:
            segments.append(one)
        else:
            segments[same] = replace(one, values=segments[same].values | _given(one.values))
    return LabelRow(
        before.values | _given(after.values),
        after.group or before.group,
        after.split or before.split,
        before.named or after.named,
        tuple(segments),
    )


def _is_same_part(one: Segment, two: Segment, earlier: LabelRow) -> bool:
    """The same part from the earlier source; two of one source that cover the same are two."""
    known = any(one is segment for segment in earlier.segments)
    return known and one.in_frames == two.in_frames and one.is_at(two.start_s, two.end_s)


def _given(values: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value}
