"""The manifest is checked when it is read, and says what it lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus import manifest
from tubelet.corpus.fingerprint import Fingerprint, fingerprint
from tubelet.corpus.manifest import (
    SCHEMA,
    ManifestSlices,
    is_manifest,
    key_of,
    read_manifest,
    schema_with,
    write_manifest,
)
from tubelet.corpus.selection import class_names, read_labelled, select, split_counts


def _table(**columns: Any) -> pa.Table:
    """Eight usable videos of two classes, in two splits."""
    rows = [
        {
            "key": key_of(f"{i}.mp4"),
            "segment": 0,
            "uri": f"/v/{i}.mp4",
            "path": f"{i}.mp4",
            "etag": f"e{i}",
            "size": 10 + i,
            "status": "ok",
            "label": "ab"[i % 2],
            "split": "train" if i < 6 else "val",
        }
        for i in range(8)
    ]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.mark.parametrize("name", ["m", "m.parquet"])
def test_round_trip(root: str, name: str) -> None:
    out = f"{root}/{name}"
    assert not is_manifest(out)
    write_manifest(_table(), out)
    assert is_manifest(out)
    assert read_manifest(out).equals(_table())
    assert read_manifest(out, columns=["uri", "split"]).column_names == ["uri", "split"]


def test_reader_sees_one_version_whole(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced after its footer was read, before its columns are."""
    count = 20_000  # more than is fetched with the footer
    old = pa.concat_tables([_table().slice(0, 1)] * count).set_column(
        0, SCHEMA.field("key"), pa.array([key_of(f"{i}.mp4") for i in range(count)])
    )
    write_manifest(old, f"{root}/m")
    open_file = pq.ParquetFile

    def open_and_replace(*args: Any, **options: Any) -> pq.ParquetFile:
        monkeypatch.undo()
        opened = open_file(*args, **options)
        write_manifest(_table(), f"{root}/m")
        return opened

    monkeypatch.setattr(pq, "ParquetFile", open_and_replace)
    seen = read_manifest(f"{root}/m")
    assert seen.equals(_table()) or seen.equals(old)
    assert read_manifest(f"{root}/m").equals(_table())


def test_relative_paths_of_another_tool_hold_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["v/0.mp4", "/v/1.mp4", "s3://b/v/2.mp4", *[f"v/{i}.mp4" for i in range(3, 8)]]
    pq.write_table(_table(uri=names), tmp_path / "m.parquet")
    monkeypatch.chdir(tmp_path)
    found = read_manifest("m.parquet")["uri"].to_pylist()
    assert found[:4] == [f"{tmp_path}/v/0.mp4", "/v/1.mp4", "s3://b/v/2.mp4", f"{tmp_path}/v/3.mp4"]


def test_missing_manifest_says_how_to_make_one(root: str) -> None:
    with pytest.raises(
        UserError, match=r"there is no manifest at .*: make one with `tubelet index SRC --out"
    ):
        read_manifest(f"{root}/none")


def test_other_tables_say_what_they_lack(tmp_path: Path) -> None:
    pd.DataFrame({"uri": ["x"], "label": ["a"]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(UserError, match="it lacks the columns key, path, etag, size, status"):
        read_manifest(tmp_path / "m.parquet")
    assert not is_manifest(tmp_path / "m.parquet")


def test_file_that_is_no_parquet(root: str) -> None:
    storage.write_bytes(f"{root}/m.parquet", b"path,label\n")
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        read_manifest(f"{root}/m.parquet")


def test_splits_of_other_names_are_found(tmp_path: Path) -> None:
    names = ["training", "validation", "Test", "dev", "fold 1", None, "train", "val"]
    column = pa.array(names, pa.string())
    table = _table().set_column(_table().column_names.index("split"), "split", column)
    table = table.set_column(table.column_names.index("status"), "status", pa.array(["ok"] * 8))
    counts = {name: select(table, name).num_rows for name in ("train", "validation", "val", "eval", "fold 1")}
    assert counts == {"train": 2, "validation": 3, "val": 3, "eval": 1, "fold 1": 1}
    assert split_counts(table) == {"fold 1": 1, "none": 1, "test": 1, "train": 2, "val": 3}


def test_table_of_another_tool_is_accepted(tmp_path: Path) -> None:
    """pandas writes other string types; columns that only probing fills may be missing."""
    frame = _table().select(["key", "uri", "path", "etag", "size", "status", "label"]).to_pandas()
    frame["mine"] = 1
    frame.to_parquet(tmp_path / "m.parquet")
    table = read_manifest(tmp_path / "m.parquet")
    assert table.schema.field("key").type == pa.string()
    assert table["segment"].to_pylist() == [0] * 8
    assert table["keyframes_s"].null_count == 8
    assert "mine" in table.column_names


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"status": ["fine"] * 8}, "status is 'fine' in some rows; it may be ok, error, gone"),
        ({"key": ["same"] * 8}, "1 keys stand there twice, for example same"),
        ({"uri": [None] * 8}, "8 rows have no uri"),
        ({"clip_start_s": [-5.0, None, math.nan, 1.0, *[None] * 4]}, f"1 rows .* {key_of('0.mp4')}"),
        ({"clip_end_s": [None, -math.inf, math.nan, 1.0, *[None] * 4]}, f"1 rows .* {key_of('1.mp4')}"),
    ],
)
def test_rows_that_break_the_rules(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_table(**columns), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=said):
        read_manifest(tmp_path / "m.parquet")
    with pytest.raises(UserError, match=said):
        write_manifest(_table(**columns), tmp_path / "other")


def test_flipped_bytes_are_said_to_be_damage(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(_table(), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36  # the header of the first page
    path.write_bytes(data)
    for read in (lambda: read_manifest(path), lambda: list(ManifestSlices.open(path))):
        with pytest.raises(UserError, match=r"m\.parquet is damaged: .*\nmake it again with `tubelet index`"):
            read()


def _numbered(count: int) -> pa.Table:
    paths = [f"{i}.mp4" for i in range(count)]
    table = _table().take([i % 8 for i in range(count)])
    for name, values in {"key": map(key_of, paths), "path": paths}.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(list(values)))
    return table


def test_slices_are_the_whole(root: str) -> None:
    """One file, or a folder of files that another tool wrote."""
    import pyarrow.parquet as pq

    table = _numbered(10_000)
    write_manifest(table, f"{root}/m")
    for part in (table.slice(0, 6_000), table.slice(6_000)):
        filesystem, path = storage.filesystem(f"{root}/parts/{part.num_rows}.parquet")
        filesystem.create_dir(path.rpartition("/")[0])
        pq.write_table(part, path, filesystem=filesystem)
    for name in ("m", "parts"):
        slices = ManifestSlices.open(f"{root}/{name}", without=("keyframes_s",))
        found = list(slices)
        assert max(part.num_rows for part in found) <= 4096
        whole = pa.concat_tables(found)
        assert whole.sort_by("key").equals(table.drop_columns(["keyframes_s"]).sort_by("key"))
        added = Fingerprint()
        for part in slices:  # a second time
            added.add(part)
        assert added.hexdigest() == fingerprint(table)


def test_slices_find_rows_that_stand_twice_far_apart(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pa.concat_tables([_numbered(9_000), _numbered(1)])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UserError, match=f"1 keys stand there twice, for example {key_of('0.mp4')}"):
        list(ManifestSlices.open(tmp_path / "m.parquet"))


def test_select_by_split_label_and_status() -> None:
    table = _table(
        status=["ok", "error", "gone", *["ok"] * 5], label=["a", "b", "a", None, "b", "a", None, "b"]
    )
    assert select(table)["path"].to_pylist() == [f"{i}.mp4" for i in (0, 3, 4, 5, 6, 7)]
    assert select(table, "train", labelled=True)["path"].to_pylist() == ["0.mp4", "4.mp4", "5.mp4"]
    assert select(table, labelled=False)["path"].to_pylist() == ["3.mp4", "6.mp4"]
    assert select(table, status=None).num_rows == 8


def test_empty_split_names_what_there_is() -> None:
    with pytest.raises(
        UserError, match="no labelled videos in split 'test'; the splits hold: train 6, val 2"
    ):
        select(_table(), "test", labelled=True, required=True)
    assert select(_table(), "test").num_rows == 0


def test_no_labels_says_how_to_give_them() -> None:
    with pytest.raises(UserError, match=r"none of the 8 usable videos has a label(.|\n)*--labels"):
        select(_table(label=[None] * 8), "train", labelled=True, required=True)
    with pytest.raises(UserError, match="no labels 'label_verb'; it has label"):
        select(_table(), labelled=True, head="label_verb")


def test_classes_are_sorted_and_one_is_too_few() -> None:
    assert class_names(_table()) == ["a", "b"]
    with pytest.raises(UserError, match="have the one class 'a'"):
        class_names(_table(label=["a"] * 8), at_least=2)
    with pytest.raises(UserError, match="no video has a label"):
        class_names(_table(label=[None] * 8), at_least=2)
    lists = pa.Table.from_pylist(
        [{"label": ["z", "y"]}, {"label": None}], schema=schema_with({"label": True})
    )
    assert class_names(lists) == ["y", "z"]


def test_fingerprint_is_of_the_content() -> None:
    table = _table()
    shuffled = table.take([3, 1, 2, 0, 7, 6, 5, 4])
    assert fingerprint(shuffled) == fingerprint(table)
    for change in (
        {"label": ["b", "b", "a", "b", "a", "b", "a", "b"]},
        {"split": ["val"] * 8},
        {"etag": [f"f{i}" for i in range(8)]},
        {"status": ["gone", *["ok"] * 7]},
    ):
        assert fingerprint(_table(**change)) != fingerprint(table)
    assert fingerprint(_table(indexed_at=[pd.Timestamp("2026-01-01")] * 8)) == fingerprint(table)


def test_labelled_rows_are_read_a_slice_at_a_time(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_SLICE_ROWS", 3)
    labels = ["a", None, "b", None, None, None, "a", "b"]
    statuses = ["ok", "ok", "error", "ok", "ok", "ok", "ok", "ok"]
    codes = [None, None, "timeout", *[None] * 5]
    write_manifest(_table(label=labels, status=statuses, error_code=codes), f"{root}/m")
    found = read_labelled(f"{root}/m", ["label", "label_other"])
    assert found.equals(select(read_manifest(f"{root}/m"), labelled=True))
    assert found["uri"].to_pylist() == ["/v/0.mp4", "/v/6.mp4", "/v/7.mp4"]
    assert "keyframes_s" not in read_labelled(f"{root}/m", ["label"], without=["keyframes_s"]).column_names
    # With nothing labelled there is all, to say what there is.
    write_manifest(_table(label=[None] * 8), f"{root}/none")
    assert len(read_labelled(f"{root}/none", ["label"])) == 8
