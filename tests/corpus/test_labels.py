"""Labels join by path or URI, and what contradicts itself or matches nothing is said."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpus import ODD_NAMES, put, put_text
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.labels import LabelRow, Labels, load_labels
from tubelet.corpus.manifest import key_of
from tubelet.corpus.splits import parse_split
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo, list_objects
from tubelet.storage.opener import ObjectOpener


def _load(source: str, src: str, split_column: str = "split") -> Labels:
    return load_labels(source, storage.normalise_uri(src), DEFAULT_OPTIONS, split_column)


def _join(source: str, src: str) -> dict[str, LabelRow]:
    labels = _load(source, src)
    joined = {info.path: labels.lookup(info) for info in list_objects(src)}
    labels.check()
    return joined


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def test_csv_joins_by_path_and_keeps_odd_names(root: str) -> None:
    put(f"{root}/v", dict.fromkeys(ODD_NAMES, b"1"))
    lines = [f"{_quoted(name)},class {i % 2},g{i}" for i, name in enumerate(ODD_NAMES)]
    joined = _join(put_text(f"{root}/labels.csv", "path,label,group", *lines), f"{root}/v")
    for i, name in enumerate(ODD_NAMES):
        assert joined[name] == LabelRow({"label": f"class {i % 2}"}, group=f"g{i}")


def test_uri_column(root: str) -> None:
    put(f"{root}/v", {"a b.mp4": b"1", "c.mp4": b"1"})
    labels = put_text(f"{root}/labels.csv", "uri,label", f"{root}/v/a b.mp4,x", f"{root}/v/c.mp4,y")
    joined = _join(labels, f"{root}/v")
    assert [joined[p].values["label"] for p in ("a b.mp4", "c.mp4")] == ["x", "y"]


def test_paths_relative_to_the_label_file(root: str) -> None:
    put(f"{root}/set/v", {"a.mp4": b"1", "b.mp4": b"1"})
    labels = put_text(f"{root}/labels.csv", "path,label", "set/v/a.mp4,x", "set/v/b.mp4,y")
    assert _join(labels, f"{root}/set/v")["a.mp4"].values == {"label": "x"}


@pytest.mark.parametrize("written", ["./k/a.mp4", "/k/a.mp4", "k\\a.mp4", "k//a.mp4"])
def test_ways_to_write_a_path(tmp_path: Path, written: str) -> None:
    put(str(tmp_path / "v"), {"k/a.mp4": b"1", "b.mp4": b"1"})
    labels = put_text(str(tmp_path / "l.csv"), "path,label", f"{written},x", "b.mp4,y")
    assert _join(labels, str(tmp_path / "v"))["k/a.mp4"].values == {"label": "x"}


def test_unicode_forms_match_each_other(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "köche/ä.mp4") for form in ("NFC", "NFD"))
    put(str(tmp_path / "v"), {decomposed: b"1", "b.mp4": b"2"})
    labels = put_text(str(tmp_path / "l.csv"), "path,label", f"{composed},x", "b.mp4,y")
    assert _join(labels, str(tmp_path / "v"))[decomposed].values == {"label": "x"}


def test_heads_and_several_labels_in_a_cell(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1", "b": b"1", "c": b"1"})
    labels = put_text(
        str(tmp_path / "l.csv"),
        "path;label_noun;label_verb;split",
        "a;knife | board;cut;train",
        "b;cup;;val",
        "c;;wash;",
    )
    loaded = _load(labels, str(tmp_path / "v"))
    assert loaded.heads == {"label": False, "label_noun": True, "label_verb": False}
    joined = _join(labels, str(tmp_path / "v"))
    assert joined["a"].values == {"label": None, "label_noun": ["knife", "board"], "label_verb": "cut"}
    assert joined["b"].values == {"label": None, "label_noun": ["cup"], "label_verb": None}
    assert [joined[name].split for name in "abc"] == ["train", "val", None]


def test_parquet_label_file(root: str, tmp_path: Path) -> None:
    put(f"{root}/v", {"a": b"1", "b": b"1"})
    pq.write_table(pa.table({"path": ["a", "b"], "label": [["x", "y"], ["z"]]}), tmp_path / "l.parquet")
    storage.upload_file(tmp_path / "l.parquet", f"{root}/l.parquet")
    assert _join(f"{root}/l.parquet", f"{root}/v")["a"].values == {"label": ["x", "y"]}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1", "b": b"1"})
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\na,x\r\n\r\nb,y\r\n")
    assert _join(str(tmp_path / "l.csv"), str(tmp_path / "v"))["a"].values == {"label": "x"}


def test_class_folders(root: str) -> None:
    put(root, dict.fromkeys(["left/a.mp4", "left/deep/b.mp4", "right/c.mp4", "loose.mp4"], b"1"))
    labels = _load("folders", root)
    joined = {info.path: labels.lookup(info).values.get("label") for info in list_objects(root)}
    assert joined == {
        "left/a.mp4": "left",
        "left/deep/b.mp4": "left",
        "right/c.mp4": "right",
        "loose.mp4": None,
    }
    assert labels.check() == ["1 objects lie in no class folder: 'loose.mp4'"]


def test_class_folders_below_split_folders(root: str) -> None:
    put(root, dict.fromkeys(["train/left/a", "train/right/b", "test/left/c"], b"1"))
    joined = _join("folders", root)
    assert {path: (row.values["label"], row.split) for path, row in joined.items()} == {
        "train/left/a": ("left", "train"),
        "train/right/b": ("right", "train"),
        "test/left/c": ("left", "test"),
    }


@pytest.mark.parametrize("names", [("training", "validation", "testing"), ("Train", "dev", "eval")])
def test_split_folders_go_by_many_names_and_stand_beside_others(root: str, names: tuple[str, ...]) -> None:
    train, val, test = names
    paths = [f"{train}/left/a", f"{val}/right/b", f"{test}/left/c", "annotations/train.csv", "spare/left/d"]
    put(root, dict.fromkeys(paths, b"1"))
    labels = _load("folders", root)
    rule = parse_split(None, labels)
    found = {}
    for info in list_objects(root):
        row = labels.lookup(info)
        found[info.path] = (row.values.get("label"), rule.assign("", info.path, row).split)
    wanted = [("left", "train"), ("right", "val"), ("left", "test"), (None, None), (None, None)]
    assert found == dict(zip(paths, wanted, strict=True))
    (warning,) = labels.check()
    assert "2 objects lie beside the folders of the splits" in warning
    assert "'annotations' (1)" in warning
    assert "'spare' (1)" in warning


def test_a_class_may_be_called_train(root: str) -> None:
    put(root, dict.fromkeys(["bus/a", "car/b", "train/c"], b"1"))
    assert {row.values["label"] for row in _join("folders", root).values()} == {"bus", "car", "train"}


def test_one_split_folder_beside_annotations(root: str) -> None:
    put(root, dict.fromkeys(["train/left/a", "train/right/b", "annotations/x.csv"], b"1"))
    joined = _join("folders", root)
    assert joined["train/left/a"] == LabelRow({"label": "left"}, split="train")
    assert joined["annotations/x.csv"] == LabelRow()


@pytest.mark.parametrize(
    ("key", "label"), [("/a.mp4", None), ("/run//b.mp4", "run"), ("jump//c.mp4", "jump")]
)
def test_no_class_has_an_empty_name(tmp_path: Path, key: str, label: str | None) -> None:
    """Keys of a store may hold `//` (the server of the tests makes one slash of them)."""
    put(str(tmp_path), {"run/a.mp4": b"1"})
    found = _load("folders", str(tmp_path)).lookup(ObjectInfo(f"s3://b/v/{key}", key, "", 1))
    assert found.values.get("label") == label


def test_unicode_forms_of_a_class_are_one_class(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), dict.fromkeys(["a", "b", "c"], b"1"))
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    rows = [f"a,{forms[0]}", f"b,{forms[1]}", "c,tea"]
    joined = _join(put_text(str(tmp_path / "l.csv"), "path,label", *rows), str(tmp_path / "v"))
    assert joined["a"] == joined["b"] == LabelRow({"label": forms[0]})
    put(str(tmp_path / "w"), {f"{forms[0]}/a": b"1", f"{forms[1]}/b": b"1"})
    folders = _join("folders", str(tmp_path / "w")).values()
    assert [row.values["label"] for row in folders] == [forms[0], forms[0]]


def test_classes_that_differ_in_case_or_spaces_only_are_told(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), dict.fromkeys(["a", "b", "c", "d"], b"1"))
    rows = ["a,run fast", "b,Run", "c,run  fast", "d,run"]
    labels = _load(put_text(str(tmp_path / "l.csv"), "path,label", *rows), str(tmp_path / "v"))
    for info in list_objects(str(tmp_path / "v")):
        labels.lookup(info)
    (warning,) = labels.check()
    assert "'Run' and 'run'; 'run  fast' and 'run fast'" in warning


def test_spaces_at_the_ends_of_file_names(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), dict.fromkeys([" a", "a", "b ", "c"], b"1"))
    rows = ['" a",x', "a,y", '"b ",z', '" c ",w']
    joined = _join(put_text(str(tmp_path / "l.csv"), "path,label", *rows), str(tmp_path / "v"))
    assert {path: row.values["label"] for path, row in joined.items()} == {
        " a": "x",
        "a": "y",
        "b ": "z",
        "c": "w",
    }


def test_file_names_that_are_latin1(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    raw = os.path.join(os.fsencode(folder), b"caf\xe9 1.mp4")
    Path(os.fsdecode(raw)).write_bytes(b"content")
    put(str(folder), {"b.mp4": b"1"})
    labels = put_text(str(tmp_path / "l.csv"), "path,label", "café 1.mp4,x", "b.mp4,y")
    assert {row.values["label"] for row in _join(labels, str(folder)).values()} == {"x", "y"}
    odd, _ = sorted(list_objects(str(folder)), key=lambda info: info.path != "caf\\udce9 1.mp4")
    assert odd.path == "caf\\udce9 1.mp4"
    assert odd.uri.encode().startswith(b"file:///")
    assert ObjectOpener(odd.uri, odd.size_bytes, odd.etag)().read() == b"content"


@pytest.mark.parametrize(
    "header", ["Path,LABEL", "file_name,Label", "FileName,label", "video,label", "video_path,label"]
)
def test_ways_to_name_the_columns(tmp_path: Path, header: str) -> None:
    put(str(tmp_path / "v"), {"a": b"1", "b": b"1"})
    labels = put_text(str(tmp_path / "l.csv"), header, "a,x", "b,y")
    assert _join(labels, str(tmp_path / "v"))["a"].values == {"label": "x"}


def test_text_that_is_written_as_bytes(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1", "b": b"1"})
    columns = {"path": [b"a", b"b"], "label": ["é".encode(), b"y"], "label_more": [[b"p", b"q"], []]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    assert _join(str(tmp_path / "l.parquet"), str(tmp_path / "v"))["a"].values == {
        "label": "é",
        "label_more": ["p", "q"],
    }
    pq.write_table(pa.table({"path": ["a", "b"], "label": [b"x", b"\xff"]}), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="row 2: the bytes in column 'label' are no UTF-8"):
        _load(str(tmp_path / "bad.parquet"), str(tmp_path / "v"))


def test_one_separator_in_a_column_is_asked_about(tmp_path: Path) -> None:
    rows = ["a,Pass|Fail", *(f"{name},{'xy'[i % 2]}" for i, name in enumerate("bcdef"))]
    with pytest.raises(UserError, match=r"line 2: 'Pass\|Fail' is the only cell of 'label' with '\|'"):
        _load(put_text(str(tmp_path / "l.csv"), "path,label", *rows), str(tmp_path))
    rows[0] = "a,x|z"
    assert _load(put_text(str(tmp_path / "l.csv"), "path,label", *rows), str(tmp_path)).heads == {
        "label": True
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"images": [], "annotations": []}', "is JSON as COCO has it"),
        (b'["a", "b"]', "is JSON, but no list of objects"),
        (b'{"path": "a", "label": "x"}\n{"path"', "line 2: broken JSON"),
        (b"PK\x03\x04....", "an Excel workbook or a zip archive"),
        ("path,label\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        _load(str(tmp_path / "labels"), str(tmp_path))
    assert len(str(caught.value).splitlines()) <= 2


def test_nothing_matches_shows_three_of_each_side(root: str) -> None:
    put(f"{root}/v", dict.fromkeys(["clips/a1", "clips/a2", "clips/a3", "clips/a4"], b"1"))
    labels = put_text(f"{root}/l.csv", "path,label", *[f"b{i},x" for i in range(5)])
    with pytest.raises(UserError) as caught:
        _join(labels, f"{root}/v")
    message = str(caught.value)
    assert "0 of 5 rows match the 4 objects" in message
    assert "it names 'b0', 'b1', 'b2'; without a row are 'clips/a1', 'clips/a2', 'clips/a3'" in message
    assert len(message.splitlines()) == 2


def test_part_that_does_not_match_is_a_warning(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), dict.fromkeys(["a", "b", "c"], b"1"))
    labels = _load(put_text(str(tmp_path / "l.csv"), "path,label", "a,x", "b,y", "q,y"), str(tmp_path / "v"))
    for info in list_objects(str(tmp_path / "v")):
        labels.lookup(info)
    (warning,) = labels.check()
    assert "2 of 3 rows match an object; it names 'q'; without a row are 'c'" in warning


def test_one_class_is_a_warning(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), dict.fromkeys(["a", "b"], b"1"))
    labels = _load(put_text(str(tmp_path / "l.csv"), "path,label", "a,x", "b,x"), str(tmp_path / "v"))
    for info in list_objects(str(tmp_path / "v")):
        labels.lookup(info)
    assert labels.check() == ["all labels are of one class, 'x': there is nothing to train on yet"]


def test_equal_duplicates_are_fine_and_different_ones_are_not(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1", "b": b"1"})
    same = put_text(str(tmp_path / "same.csv"), "path,label", "a,x", "b,y", "a,x")
    assert _join(same, str(tmp_path / "v"))["a"].values == {"label": "x"}
    other = put_text(str(tmp_path / "other.csv"), "path,label", "a,x", "b,y", "a,y")
    with pytest.raises(
        UserError, match="line 4: 'a' stands there twice and differently: label='x' and label='y'"
    ):
        _join(other, str(tmp_path / "v"))


def test_two_spellings_of_one_object_must_agree(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1"})
    labels = put_text(str(tmp_path / "l.csv"), "path,uri,label", "a,,x", f",{tmp_path}/v/a,y")
    with pytest.raises(UserError, match="two rows name 'a' and disagree"):
        _join(labels, str(tmp_path / "v"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["file,label", "a,x"], "neither a column `path` nor `uri`; its columns are 'file', 'label'"),
        (["path,class", "a,x"], "has no column `label`"),
        (["path,label", "a,"], "has no labels"),
        (["path,label"], "has no labels"),
        (["path,label,label", "a,x,y"], "'label' stands there twice"),
        (["path,label", "a,x,y"], "line 2: 3 cells under 2 columns"),
        (["path,label", ",x"], "line 2: neither path nor uri is given"),
    ],
)
def test_malformed_label_files_are_explained(tmp_path: Path, lines: list[str], said: str) -> None:
    put(str(tmp_path / "v"), {"a": b"1"})
    with pytest.raises(UserError, match=said):
        _join(put_text(str(tmp_path / "l.csv"), *lines), str(tmp_path / "v"))


def test_label_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("path,label\nä,x\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        _load(str(tmp_path / "l.csv"), str(tmp_path))


def test_missing_label_file(root: str) -> None:
    with pytest.raises(UserError, match=r"there is no label file .*none\.csv"):
        _load(f"{root}/none.csv", root)


def test_folders_without_folders(root: str) -> None:
    put(root, {"a.mp4": b"1", "b.mp4": b"1"})
    with pytest.raises(
        UserError, match=r"nothing under .* lies in a class folder, for example 'a.mp4', 'b.mp4'"
    ):
        _join("folders", root)


def test_a_correction_finds_its_video_by_uri_where_the_key_is_of_another_folder(root: str) -> None:
    put(f"{root}/bucket/inbox", {"a.mp4": b"1", "b.mp4": b"1"})
    uri = f"{root}/bucket/inbox/a.mp4"
    labels = put_text(
        f"{root}/corrections.csv",
        "key,window,uri,label,at",
        f"{key_of('a.mp4')},0,{uri},x,2026-01-01T00:00:00",
    )
    assert _join(labels, f"{root}/bucket")["inbox/a.mp4"].values == {"label": "x"}
    assert _join(labels, f"{root}/bucket/inbox")["a.mp4"].values == {"label": "x"}
