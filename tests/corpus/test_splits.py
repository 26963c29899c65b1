"""Splits are functions of the key, the group or a column: stable, leak-free; refused if they fit nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.corpus import put, put_text
from tubelet.config import UserError
from tubelet.corpus.labels import NO_LABELS, LabelRow, NoLabels, load_labels
from tubelet.corpus.manifest import key_of
from tubelet.corpus.splits import SplitRule, parse_split, split_column_of
from tubelet.storage import DEFAULT_OPTIONS


def _rule(spec: str | None) -> SplitRule:
    return parse_split(spec, NoLabels())


def _assign(rule: SplitRule, paths: list[str]) -> dict[str, str | None]:
    return {path: rule.assign(key_of(path), path, NO_LABELS).split for path in paths}


def test_fractions_are_met() -> None:
    counts = Counter(_assign(_rule(None), [f"v/{i}.mp4" for i in range(20_000)]).values())
    for name, wanted in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert counts[name] / 20_000 == pytest.approx(wanted, abs=0.01)


def test_a_video_keeps_its_split_when_the_corpus_grows() -> None:
    few = _assign(_rule(None), [f"{i}" for i in range(0, 1000, 7)])
    many = _assign(_rule(None), [f"{i}" for i in range(1000)])
    assert few == {path: many[path] for path in few}


def test_keys_and_splits_are_fixed_for_ever() -> None:
    """A new release must not move videos from test to train."""
    assert key_of("left/größe 1.mp4") == "d8500e34158e2c61da6ec8943dc6cdc4"
    paths = [f"left/{i}.mp4" for i in range(12)]
    wanted = [
        "val",
        "train",
        "val",
        "val",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "test",
    ]
    assert list(_assign(_rule(None), paths).values()) == wanted


def test_group_of_the_label_file_stays_together() -> None:
    rule = _rule("train=0.5,test=0.5")
    for group in ("ann", "bob", "cid", "dora", "emil"):
        rows = [rule.assign(key_of(f"{group}{i}"), "", LabelRow(group=group)) for i in range(20)]
        assert len({row.split for row in rows}) == 1
        assert {row.group for row in rows} == {group}


def test_group_by_regex_stays_together() -> None:
    rule = _rule(r"group:_g(\d+)_")
    paths = [f"v_run_g{g:02d}_c{c}.mp4" for g in range(40) for c in range(5)]
    by_group: dict[str | None, set[str | None]] = {}
    for path in paths:
        assigned = rule.assign(key_of(path), path, NO_LABELS)
        by_group.setdefault(assigned.group, set()).add(assigned.split)
    assert len(by_group) == 40
    assert all(len(splits) == 1 for splits in by_group.values())
    assert set().union(*by_group.values()) == {"train", "val", "test"}


def test_clips_of_one_recording_of_ucf101_on_both_sides_are_told_of() -> None:
    paths = [f"Archery/v_Archery_g{g:02d}_c{c:02d}.avi" for g in range(1, 9) for c in range(1, 6)]
    rule = _rule(None)
    counts = Counter(str(split) for split in _assign(rule, paths).values())
    (warning,) = rule.check(dict(counts))
    assert "v_Archery_g0" in warning
    flag = warning.rpartition("--split '")[2].rstrip("'")
    grouped = _rule(flag)
    by_group = _assign(grouped, paths)
    assert all(len({by_group[p] for p in paths if f"_g{g:02d}_" in p}) == 1 for g in range(1, 9))
    alone = _rule("train=1")
    _assign(alone, paths)
    assert not alone.check({"train": 40})


def test_path_without_a_group_stands_alone_and_is_told() -> None:
    rule = _rule(r"group:_g(\d+)_")
    assert rule.assign(key_of("a_g1_"), "a_g1_", NO_LABELS).group == "1"
    assert rule.assign(key_of("other"), "other", NO_LABELS).group is None
    warnings = rule.check({"train": 1, "val": 1, "test": 1})
    assert "does not match 1 paths, for example 'other'" in warnings[0]


def test_regex_that_matches_nothing() -> None:
    rule = _rule(r"group:person(\d+)")
    for path in ("a", "b", "c", "d"):
        rule.assign(key_of(path), path, NO_LABELS)
    with pytest.raises(UserError, match=r"the regex matches no path, for example 'a', 'b', 'c'$"):
        rule.check({"train": 4})


def test_column_of_the_label_file(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1", "b": b"1"})
    source = put_text(str(tmp_path / "l.csv"), "path,label,fold", "a,x,1", "b,y,")
    labels = load_labels(source, str(tmp_path / "v"), DEFAULT_OPTIONS, split_column_of("column:fold"))
    rule = parse_split("column:fold", labels)
    assert rule.assign("k", "a", LabelRow(split="1")).split == "1"
    with pytest.raises(UserError, match=r"no object under SRC has a value in that column"):
        rule.check({})


def test_words_for_the_usual_splits(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1"})
    source = put_text(str(tmp_path / "l.csv"), "path,label,Subset", "a,x,Validate")
    labels = load_labels(source, str(tmp_path / "v"), DEFAULT_OPTIONS, "subset")
    rule = parse_split("column:subset", labels)
    for word, split in (("Training", "train"), (" dev ", "val"), ("VALIDATION", "val"), ("eval", "test")):
        assert rule.assign("k", "a", LabelRow(split=word)).split == split
    assert rule.assign("k", "a", LabelRow(split="Fold 1")).split == "Fold 1"
    assert set(_assign(_rule("training=0.5,validation=0.5"), [str(i) for i in range(50)]).values()) == {
        "train",
        "val",
    }
    with pytest.raises(UserError, match="val twice"):
        _rule("val=0.5,dev=0.5")


def test_column_that_is_not_there(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1"})
    source = put_text(str(tmp_path / "l.csv"), "path,label", "a,x")
    labels = load_labels(source, str(tmp_path / "v"), DEFAULT_OPTIONS, "fold")
    with pytest.raises(UserError, match=r"column:fold: the labels have path, label\nname one"):
        parse_split("column:fold", labels)
    with pytest.raises(UserError, match="no columns, as there is no label file"):
        _rule("column:fold")


def test_split_column_is_used_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    put(str(tmp_path / "v"), {"a": b"1"})
    source = put_text(str(tmp_path / "l.csv"), "path,label,split", "a,x,test")
    labels = load_labels(source, str(tmp_path / "v"), DEFAULT_OPTIONS)
    assert parse_split(None, labels).spec == "column:split"
    assert parse_split("train=1", labels).spec == "train=1"


def test_split_without_videos_is_a_warning() -> None:
    rule = _rule("train=0.8,val=0.1,test=0.1")
    assert rule.check({"train": 3}) == [
        "no video fell into split val, test: there are too few for train=0.8,val=0.1,test=0.1"
    ]
    assert _rule("train=1,test=0").check({"train": 3}) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("train", "'train' is not NAME=FRACTION"),
        ("train=most,test=0.1", "'most' is no number"),
        ("train=0.8,test=0.1", "add up to 0.9, not 1"),
        ("train=1.2,test=-0.2", "train is not between 0 and 1"),
        ("train=nan,test=1", "train is not between 0 and 1"),
        ("train=0.5,train=0.5", "train twice"),
        ("", "is not NAME=FRACTION"),
        ("group:(", "not a regular expression"),
        ("group:abc", r"in \(parentheses\)"),
    ],
)
def test_bad_specs_are_explained(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _rule(spec)
