"""Labels from the names of folders."""

from __future__ import annotations

from collections import Counter

from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.label_source import NO_LABELS, ClassNames, Examples, LabelRow, composed
from tubelet.corpus.split_names import is_split_word, normalise_split
from tubelet.storage import ObjectInfo, StorageOptions

_EXAMPLES = 3
# Folders that are looked into, where only looking tells whether a folder is a split or a class.
_LOOKED_INTO = 20


class FolderLabels:
    """The class is the first folder below SRC; below folders such as ``train`` and ``val`` the second."""

    def __init__(self, src: str, options: StorageOptions) -> None:
        """Look at the folders below ``src``.

        Raises:
            UserError: ``src`` cannot be listed.
        """
        self.heads: dict[str, bool] = {"label": False}
        self.files: frozenset[str] = frozenset()
        self._src, self._options = src, options
        folders = [name for name in storage.list_folders(src, options) if not name.startswith((".", "_"))]
        self._by_split = self._are_splits(folders)
        self.split_column = "split" if self._by_split else None
        self._classes = ClassNames()
        self._outside = Examples()
        self._beside: Counter[str] = Counter()

    def lookup(self, info: ObjectInfo) -> LabelRow:
        """The class and the split that the folders of an object say."""
        folders = [name for name in info.path.split("/")[:-1] if name]
        split = None
        if self._by_split and folders:
            first = folders.pop(0)
            if not is_split_word(first):
                self._beside[first] += 1
                return NO_LABELS
            split = normalise_split(first)
        if not folders:
            self._outside.add(info.path)
            return LabelRow(split=split)
        label = composed(folders[0])
        self._classes.add("label", [label])
        return LabelRow({"label": label}, split=split)

    def check(self) -> list[str]:
        """See :meth:`Labels.check`."""
        if not self._classes:
            raise UserError(
                f"--labels folders: nothing under {self._src} lies in a class folder, for example "
                f"{self._outside}\nput the videos of each class in a folder, or give a label file"
            )
        warnings = self._classes.warnings()
        if self._outside.count:
            warnings.append(f"{self._outside.count} objects lie in no class folder: {self._outside}")
        if self._beside:
            told = ", ".join(f"{name!r} ({count})" for name, count in self._beside.most_common(_EXAMPLES))
            warnings.append(
                f"{self._beside.total()} objects lie beside the folders of the splits and have neither "
                f"class nor split: in {told}"
            )
        return warnings

    def _are_splits(self, folders: list[str]) -> bool:
        """Whether the first level is ``train/ val/``, perhaps beside ``annotations/``, and not classes.

        One such name alone may be a class (``bus/ train/``): it is a split where it alone holds folders.
        """
        words = [name for name in folders if is_split_word(name)]
        others = [name for name in folders if not is_split_word(name)]
        if not words or not others:
            return bool(words)
        if len({normalise_split(name) for name in words}) > 1:
            return True
        return any(map(self._holds_folders, words)) and not any(
            map(self._holds_folders, others[:_LOOKED_INTO])
        )

    def _holds_folders(self, name: str) -> bool:
        return bool(storage.list_folders(storage.join(self._src, name), self._options))
