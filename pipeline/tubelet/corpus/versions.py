"""The versions of a manifest: which Parquet parts each is made of, and where they lie.

A manifest that is a folder has the parts of its newest version at the root, where any Parquet reader finds
them; ``_manifest.json`` names the parts of every version, and those of earlier ones lie in ``_earlier/``. A
manifest that is one file ``m.parquet`` keeps both in ``_m.parquet.versions/`` beside it. ``MANIFEST@VERSION``
is one version, whatever was made of the manifest since. Parts are named by their content, so versions share
those that are alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, StorageOptions

_RECORD = "_manifest.json"
_VERSION = re.compile(r"(.+)@([0-9a-f]{12})")
_PART = re.compile(r"part-\d{5,}-[0-9a-f]{16}\.parquet")
_FORMAT = 1
# The one file of a folder that an earlier tubelet wrote.
LEGACY = "manifest.parquet"


def split_version(uri: str) -> tuple[str, str | None]:
    """``MANIFEST@VERSION`` in its two parts; None: the newest."""
    found = _VERSION.fullmatch(uri)
    return (found[1], found[2]) if found else (uri, None)


def is_one_file(root: str) -> bool:
    """Whether the manifest named ``root`` is one Parquet file, and not a folder of parts."""
    return root.endswith(".parquet")


def part_name(number: int, digest: str) -> str:
    """Of a part: its place among the others, and a hash of its content."""
    return f"part-{number:05d}-{digest}.parquet"


def is_part_name(name: str) -> bool:
    """Whether :func:`part_name` made it."""
    return bool(_PART.fullmatch(name))


def staging_folder(out: str) -> str:
    """Where an output that is being made keeps what is not for readers."""
    name = storage.name_of(out)
    if "." in name.strip("."):
        return storage.join(storage.parent(out), f"_{name}.staging")
    return storage.join(out, "_staging")


def record_folder(root: str) -> str:
    """The folder that ``_manifest.json`` lies in."""
    if is_one_file(root):
        return storage.join(storage.parent(root), f"_{storage.name_of(root)}.versions")
    return root


def earlier_folder(root: str) -> str:
    """Where the parts of versions lie that are not, or not only, at the root."""
    return record_folder(root) if is_one_file(root) else storage.join(root, "_earlier")


@dataclass(frozen=True)
class Part:
    """One Parquet file of a version."""

    name: str
    rows: int
    size_bytes: int


@dataclass(frozen=True)
class Version:
    """What a manifest was at one time.

    Attributes:
        parts: its files in order.
        made_from: the settings it was made with.
        at: when it was published, in UTC.
        etag: of the one file that the manifest is; None for a folder.
    """

    parts: tuple[Part, ...]
    made_from: dict[str, Any]
    at: str
    etag: str | None = None

    @property
    def name(self) -> str:
        """12 hexadecimal digits: a hash of its parts and of what it was made from."""
        about = [[part.name for part in self.parts], self.made_from]
        text = json.dumps(about, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True)
class Record:
    """What ``_manifest.json`` says.

    Attributes:
        current: the name of the newest version; None: nothing was published yet.
        versions: all that can still be read, by name.
        etag: of the record itself as it was read; None: there is none yet.
    """

    current: str | None = None
    versions: Mapping[str, Version] = field(default_factory=dict)
    etag: str | None = None

    @classmethod
    def read(cls, root: str, options: StorageOptions = DEFAULT_OPTIONS) -> Record:
        """The record of the manifest at ``root``, an empty one where it has none.

        Raises:
            UserError: it cannot be understood.
        """
        uri = storage.join(record_folder(root), _RECORD)
        try:
            data, etag = storage.read_version(uri, options)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        try:
            known = json.loads(data)
            if known["format"] > _FORMAT:
                raise UserError(f"{uri} is of a newer tubelet: use the one that wrote it, or a newer one")
            versions = {
                name: Version(tuple(Part(**p) for p in v["parts"]), v["made_from"], v["at"], v.get("etag"))
                for name, v in known["versions"].items()
            }
            return cls(known["current"], versions, etag)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{uri} is damaged ({error}): delete it, and what lies at the root is the manifest"
            ) from error

    def with_current(self, version: Version) -> Record:
        """With ``version`` as the newest."""
        return replace(self, current=version.name, versions={**self.versions, version.name: version})

    def write(self, root: str, options: StorageOptions = DEFAULT_OPTIONS) -> bool:
        """Replace what was read, unless somebody else did meanwhile; returns whether it was replaced."""
        uri = storage.join(record_folder(root), _RECORD)
        versions = {name: asdict(version) for name, version in self.versions.items()}
        data = json.dumps({"format": _FORMAT, "current": self.current, "versions": versions}, indent=1)
        if self.etag is None:
            return storage.put_if_absent(uri, data.encode(), options)
        return storage.put_if_unchanged(uri, data.encode(), self.etag, options)

    def find(self, root: str, name: str) -> Version:
        """The version of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.versions:
            known = ", ".join(list(self.versions)[-5:]) or "none"
            raise UserError(f"{root} has no version {name}; the last ones are: {known}")
        return self.versions[name]


def find_parts(
    root: str, record: Record, version: Version, options: StorageOptions = DEFAULT_OPTIONS
) -> list[ObjectInfo]:
    """Where the files of a version lie now.

    Raises:
        UserError: one is there no more.
    """
    places = [earlier_folder(root)] if is_one_file(root) else [root, earlier_folder(root)]
    if version.name != record.current:
        places.reverse()
    found = []
    for part in version.parts:
        for place in places:
            info = storage.stat(storage.join(place, part.name), options)
            if info is not None:
                found.append(info)
                break
        else:
            raise UserError(
                f"{root}: {part.name} of version {version.name} is gone: "
                "index again with --update, or take another version"
            )
    return found


def current_version(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> str | None:
    """The name of the version that a reader of ``uri`` gets; None where another tool wrote it."""
    root, named = split_version(storage.normalise_uri(uri))
    if named is not None:
        return named
    record = Record.read(root, options)
    if record.current is None or not is_one_file(root):
        return record.current
    info = storage.stat(root, options)
    return record.current if info and info.etag == record.versions[record.current].etag else None


def pinned_uri(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> str:
    """``MANIFEST@VERSION``, which can be read again whatever is made of the manifest later.

    A manifest without versions (another tool wrote it) is its plain URI.
    """
    root, _ = split_version(storage.normalise_uri(uri))
    version = current_version(uri, options)
    return root if version is None else f"{root}@{version}"


def drop_earlier(root: str, options: StorageOptions = DEFAULT_OPTIONS) -> Sequence[str]:
    """Delete all versions but the newest; returns their names."""
    record = Record.read(root, options)
    if record.current is None:
        return []
    newest = record.versions[record.current]
    kept = replace(record, versions={record.current: newest})
    if not kept.write(root, options):
        raise UserError(f"{root} was changed by another job meanwhile: run this again")
    names = {part.name for part in newest.parts} if is_one_file(root) else set()
    for name in storage.list_names(earlier_folder(root), options):
        if name.endswith(".parquet") and name not in names:
            storage.delete(storage.join(earlier_folder(root), name), options)
    return [name for name in record.versions if name != record.current]
