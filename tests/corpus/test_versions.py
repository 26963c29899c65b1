"""A manifest is many parts and many versions: one is read whole, and any can be read again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.corpus import put, put_videos, run_index, video_bytes
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus import publication
from tubelet.corpus.manifest import (
    SCHEMA,
    ManifestSlices,
    is_manifest,
    key_of,
    made_from,
    read_manifest,
    write_manifest,
)
from tubelet.corpus.publication import manifest_writer
from tubelet.corpus.versions import Record, current_version, drop_earlier, pinned_uri


def _table(count: int, label: str = "a") -> pa.Table:
    rows = [
        {
            "key": key_of(f"{i}.mp4"),
            "segment": 0,
            "uri": f"/v/{i}.mp4",
            "path": f"{i}.mp4",
            "etag": "e",
            "size": 10,
            "status": "ok",
            "attempts": 0,
            "label": label,
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _parts(root: str) -> list[str]:
    return [name for name in storage.list_names(root) if name.endswith(".parquet")]


@pytest.mark.parametrize("name", ["m", "m.parquet"])
def test_every_version_can_be_read_again(root: str, name: str) -> None:
    out = f"{root}/{name}"
    versions = []
    for count in (3, 2, 3):
        write_manifest(_table(count), out, made_from={"src": f"of {count}"})
        versions.append(pinned_uri(out))
    first, second, third = versions
    assert first == third != second, "the same rows, made from the same, are the same version"
    for uri, count in ((first, 3), (second, 2), (out, 3)):
        assert is_manifest(uri)
        assert read_manifest(uri).equals(_table(count))
        assert sum(part.num_rows for part in ManifestSlices.open(uri)) == count
        assert made_from(uri) == {"src": f"of {count}"}
        assert pinned_uri(uri) == (first if uri == out else uri)
    with pytest.raises(UserError, match=r"has no version 000000000000; the last ones are: \w+, \w+$"):
        read_manifest(f"{out}@000000000000")
    drop_earlier(out)
    assert read_manifest(first).num_rows == 3
    with pytest.raises(UserError, match="has no version"):
        read_manifest(second)


@pytest.mark.parametrize("name", ["m", "m.parquet"])
def test_a_damaged_manifest_is_no_folder_of_videos(root: str, name: str) -> None:
    out = f"{root}/{name}"
    write_manifest(_table(3), out, made_from={"src": "of 3"})
    part = out if name.endswith(".parquet") else f"{out}/{_parts(out)[0]}"
    storage.write_bytes(part, storage.read_bytes(part)[:200])
    assert is_manifest(out)
    with pytest.raises(UserError, match=f"{name}.* is not a readable Parquet file"):
        read_manifest(out)
    assert not is_manifest(root)


def test_parts_are_bounded_and_shared_between_versions(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "_GROUP_ROWS", 40)
    table, out = _table(250), f"{root}/m"
    for changed in (0, 1):
        with manifest_writer(out, SCHEMA, part_rows=100) as write:
            write(table.slice(0, 90))
            write(table.slice(90, 200 - 90))
            write(_table(250, "b" if changed else "a").slice(200))
        filesystem, path = storage.filesystem(out)
        assert ds.dataset(path, filesystem=filesystem).count_rows() == 250
        assert len(_parts(out)) == 3
        assert not storage.exists(f"{out}/_staging")
    assert read_manifest(out).slice(0, 200).equals(table.slice(0, 200))
    first, second = Record.read(out).versions.values()
    assert [part.rows for part in first.parts] == [100, 100, 50]
    assert first.parts[:2] == second.parts[:2]
    assert first.parts[2] != second.parts[2]
    assert [part.num_rows for part in ManifestSlices.open(out)][:3] == [40, 40, 20]
    assert _parts(f"{out}/_earlier") == [first.parts[2].name]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("name", ["m", "m.parquet"])
@pytest.mark.parametrize("steps", range(5))
def test_a_swap_that_is_broken_off_leaves_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, name: str
) -> None:
    """Killed between any two of its writes; the next one puts everything right."""
    out = str(tmp_path / name)
    write_manifest(_table(3), out)
    before = pinned_uri(out)
    left = steps

    def breaking(function: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal left
            if left == 0:
                raise _KilledError
            left -= 1
            return function(*args)

        return run

    with monkeypatch.context() as patch:
        for module in ("copy", "delete", "put_if_unchanged"):
            patch.setattr(storage, module, breaking(getattr(storage, module)))
        try:
            write_manifest(_table(2), out)
        except _KilledError:
            if name == "m" and steps < 4:
                assert pinned_uri(out) == before
                assert read_manifest(out).num_rows == 3
    assert read_manifest(before).num_rows == 3
    write_manifest(_table(4), out)
    assert read_manifest(out).num_rows == 4
    assert read_manifest(before).num_rows == 3
    assert len(pq.read_table(out)) == 4


def test_two_that_publish_at_once(tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    write_manifest(_table(1), out)
    stale = Record.read(out)
    write_manifest(_table(2), out)
    assert not stale.with_current(stale.versions[str(stale.current)]).write(out)


def test_manifest_of_an_earlier_tubelet_becomes_a_version(root: str) -> None:
    src, out = f"{root}/v", f"{root}/m"
    put_videos(src, ["a.mp4", "b.mp4"])
    run_index(src, out)
    (part,) = _parts(out)
    storage.copy(f"{out}/{part}", f"{out}/manifest.parquet")  # as it was written before there were versions
    for name in (part, "_manifest.json"):
        storage.delete(f"{out}/{name}")
    assert (read_manifest(out).num_rows, current_version(out), pinned_uri(out)) == (2, None, out)
    with pytest.raises(UserError, match="exists: add --update"):
        run_index(src, out)
    put(src, {"c.mp4": video_bytes(seed=5)})
    assert run_index(src, out, update=True).probed == 1
    assert len(_parts(out)) == 1
    assert "manifest.parquet" not in _parts(out)
    old = next(iter(Record.read(out).versions))
    assert read_manifest(f"{out}@{old}").num_rows == 2
    assert read_manifest(out).num_rows == 3


def test_one_file_that_another_tool_wrote_since_is_what_is_read(tmp_path: Path) -> None:
    out = str(tmp_path / "m.parquet")
    write_manifest(_table(3), out)
    before = pinned_uri(out)
    pq.write_table(_table(5), out)
    assert (read_manifest(out).num_rows, pinned_uri(out)) == (5, out)
    write_manifest(_table(2), out)
    assert read_manifest(before).num_rows == 3
    assert sorted(version.rows for version in Record.read(out).versions.values()) == [2, 3, 5]


def test_update_that_finds_nothing_new_makes_no_version(tmp_path: Path) -> None:
    src, out = str(tmp_path / "v"), str(tmp_path / "m")
    put_videos(src, ["a.mp4", "b.mp4"])
    run_index(src, out)
    run_index(src, out, update=True)
    assert len(Record.read(out).versions) == 1
    with pytest.raises(UserError, match="is one version of a manifest"):
        run_index(src, pinned_uri(out), update=True)


def test_what_a_person_put_beside_the_parts_stays_and_is_not_read(tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    write_manifest(_table(3), out)
    shutil.copy(next(Path(out).glob("part-*")), tmp_path / "m" / "mine.parquet")
    write_manifest(_table(2), out)
    assert read_manifest(out).num_rows == 2
    assert (tmp_path / "m" / "mine.parquet").exists()
