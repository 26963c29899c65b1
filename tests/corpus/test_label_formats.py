"""Each published layout of labels, on a small sample as it was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tubelet.config import UserError
from tubelet.corpus.labels import LabelRow, Labels, load_labels
from tubelet.corpus.splits import parse_split
from tubelet.storage import DEFAULT_OPTIONS, ObjectInfo


def _put(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        place.write_text(text if text.startswith(("{", "[", "<")) else f"{text}\n", "utf-8")


def _load(folder: Path, *names: str) -> Labels:
    return load_labels([str(folder / name) for name in names], str(folder / "videos"), DEFAULT_OPTIONS)


def _row(labels: Labels, path: str) -> LabelRow:
    return labels.lookup(ObjectInfo(f"/x/videos/{path}", path, "e", 1))


def _segments(row: LabelRow) -> list[tuple[Any, ...]]:
    return [(one.start_s, one.end_s, one.values) for one in row.segments]


KINETICS = (
    "label,youtube_id,time_start,time_end,split\n"
    "riding a bike,-3B32lodo2M,59,69,train\nyoga,0wR5jVB-WPk,417,427,val"
)


def test_kinetics_trimmed_and_untrimmed(tmp_path: Path) -> None:
    _put(tmp_path, {"train.csv": KINETICS})
    labels = _load(tmp_path, "train.csv")
    trimmed = _row(labels, "yoga/0wR5jVB-WPk_000417_000427.mp4")
    assert (trimmed.values, trimmed.split, trimmed.segments) == ({"label": "yoga"}, "val", ())
    whole = _row(labels, "-3B32lodo2M.mp4")
    assert _segments(whole) == [(59.0, 69.0, {"label": "riding a bike"})]
    assert parse_split(None, labels).assign("k", "p", whole).split == "train"
    assert not any("match an object" in warning for warning in labels.check())


def test_ucf101(tmp_path: Path) -> None:
    _put(
        tmp_path / "ucfTrainTestlist",
        {
            "classInd.txt": "1 ApplyEyeMakeup\n2 Archery",
            "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
            "Archery/v_Archery_g08_c01.avi 2",
            "testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
            "trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1",
            "testlist02.txt": "Archery/v_Archery_g08_c01.avi",
        },
    )
    for name in ("ucfTrainTestlist", "ucfTrainTestlist/testlist01.txt", "ucfTrainTestlist/classInd.txt"):
        labels = _load(tmp_path, name)
        train = _row(labels, "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi")
        assert (train.values, train.split) == ({"label": "ApplyEyeMakeup"}, "train")
        assert _row(labels, "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4").split == "test"
    second = _load(tmp_path, "ucfTrainTestlist/trainlist02.txt")
    assert _row(second, "Archery/v_Archery_g08_c01.avi").split == "test"


def test_hmdb51(tmp_path: Path) -> None:
    _put(
        tmp_path,
        {
            "splits/brush_hair_test_split1.txt": "a_brush_hair_1.avi 1 \n"
            "b_brush_hair_2.avi 2 \nc_brush_hair_3.avi 0 ",
            "splits/wave_test_split1.txt": "a_brush_hair_1.avi 2 ",
            "splits/wave_test_split2.txt": "a_brush_hair_1.avi 1 ",
        },
    )
    labels = _load(tmp_path, "splits")
    found = [
        _row(labels, path)
        for path in (
            "brush_hair/a_brush_hair_1.avi",
            "wave/a_brush_hair_1.avi",
            "b_brush_hair_2.mp4",
            "brush_hair/c_brush_hair_3.avi",
        )
    ]
    assert [(row.values["label"], row.split) for row in found] == [
        ("brush_hair", "train"),
        ("wave", "test"),
        ("brush_hair", "test"),
        ("brush_hair", None),
    ]
    assert any("leaves 1 videos out" in warning for warning in labels.check())


def test_something_something(tmp_path: Path) -> None:
    train = [
        {
            "id": "78687",
            "label": "holding potato next to vicks vaporub bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "vicks vaporub bottle"],
        }
    ]
    val = [
        {
            "id": "74225",
            "label": "spinning cube",
            "template": "Spinning [something]",
            "placeholders": ["cube"],
        }
    ]
    _put(
        tmp_path, {"something-something-v2-train.json": train, "something-something-v2-validation.json": val}
    )
    labels = _load(tmp_path, "something-something-v2-train.json", "something-something-v2-validation.json")
    rows = [_row(labels, f"20bn-something-something-v2/{name}.webm") for name in ("78687", "74225")]
    assert [(row.values["label"], row.split) for row in rows] == [
        ("Holding something next to something", "train"),
        ("Spinning something", "val"),
    ]


EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,"
    "open door,open,3,door,3,\"['door']\",[3]\n"
    "P01_01_1,P01,P01_01,00:01:02.629,00:01:02.37,01:00:06.5,262,370,"
    "turn-on light,turn-on,6,light,114,['light'],[114]"
)


def test_epic_kitchens(tmp_path: Path) -> None:
    _put(tmp_path, {"EPIC_100_train.csv": EPIC})
    labels = _load(tmp_path, "EPIC_100_train.csv")
    row = _row(labels, "P01/videos/P01_01.MP4")
    assert labels.heads == {"label": False, "label_verb": False, "label_noun": False}
    assert _segments(row) == [
        (0.14, 3.37, {"label_verb": "open", "label_noun": "door"}),
        (62.37, 3606.5, {"label_verb": "turn-on", "label_noun": "light"}),
    ]
    assert _row(labels, "P01_01_1.mp4").values == {"label_verb": "turn-on", "label_noun": "light"}
    assert row.split == "train"
    _put(tmp_path, {"EPIC_100_verb_classes.csv": "id,key,instances,category\n3,open-up,\"['open']\",access"})
    assert _row(_load(tmp_path, "EPIC_100_train.csv"), "P01_01_0.mp4").values["label_verb"] == "open-up"


def test_charades(tmp_path: Path) -> None:
    head = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
    _put(
        tmp_path,
        {
            "Charades_v1_test.csv": f'{head}\n46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking",food,x,'
            "c092 11.90 21.20;c147 0.00 12.60,24.83\nN11GT,0KZ7,Stairs,6,7,Yes,s,o,d,,18.33"
        },
    )
    labels = _load(tmp_path, "Charades_v1_test.csv")
    row = _row(labels, "Charades_v1_480/46GP8.mp4")
    assert _segments(row) == [(0.0, 12.6, {"label": "c147"}), (11.9, 21.2, {"label": "c092"})]
    assert (row.split, _row(labels, "N11GT.mp4").split) == ("test", "test")
    _put(tmp_path, {"Charades_v1_classes.txt": "c092 Smiling at something\nc147 Cooking"})
    assert _row(_load(tmp_path, "Charades_v1_test.csv"), "46GP8.mp4").segments[1].values == {
        "label": "Smiling at something"
    }


def test_activitynet(tmp_path: Path) -> None:
    entry = {
        "duration": 82.75,
        "subset": "training",
        "resolution": "320x240",
        "url": "https://example.org",
        "annotations": [
            {"segment": [6.1, 77.3], "label": "Drinking coffee"},
            {"segment": [1, 2], "label": "Beer pong"},
        ],
    }
    database = {"QOlSCBRmfWY": entry, "hidden": {"subset": "testing", "annotations": []}}
    _put(tmp_path, {"activity_net.v1-3.json": {"version": "1.3", "database": database, "taxonomy": []}})
    labels = _load(tmp_path, "activity_net.v1-3.json")
    for path in ("v_QOlSCBRmfWY.mp4", "QOlSCBRmfWY.mkv"):
        row = _row(labels, path)
        assert _segments(row) == [
            (1.0, 2.0, {"label": "Beer pong"}),
            (6.1, 77.3, {"label": "Drinking coffee"}),
        ]
    assert parse_split(None, labels).assign("k", "p", row).split == "train"
    assert parse_split(None, labels).assign("k", "p", _row(labels, "v_hidden.mp4")).split == "test"


def test_ava(tmp_path: Path) -> None:
    lines = [
        "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1",
        "-5KQ66BBWC4,0902,0.226,0.032,0.366,0.497,12,0",
        "-5KQ66BBWC4,0903,0.226,0.032,0.366,0.497,12,0",
    ]
    _put(
        tmp_path,
        {
            "ava_val_v2.2.csv": "\n".join(lines),
            "ava_action_list_v2.2.pbtxt": 'item {\n  name: "stand"\n  id: 12\n}\n'
            'item {\n  name: "watch (a person)"\n  id: 80\n}',
        },
    )
    labels = _load(tmp_path, "ava_val_v2.2.csv")
    row = _row(labels, "-5KQ66BBWC4.mkv")
    assert labels.heads == {"label": True}
    assert _segments(row) == [
        (901.5, 902.5, {"label": ["watch (a person)", "stand"]}),
        (902.5, 903.5, {"label": ["stand"]}),
    ]
    assert row.split == "val"


@pytest.mark.parametrize(
    ("lines", "path", "label"),
    [
        ("some/dir/a.mp4 0\nsome/dir/b.mp4 1", "some/dir/b.mp4", "1"),
        ("some/dir/a.mp4,0\nsome/dir/b.mp4,1", "a.mp4", "0"),
        ("with space/a.mp4 0\nb.mp4 1", "with space/a.mp4", "0"),
        ("a.mp4 0 3\nb.mp4 1", "a.mp4", ["0", "3"]),
        ("frames/a 163 1\nframes/b 80 0", "frames/a.mp4", "1"),
        ("a.mp4,run\nb.mp4,jump", "b.mp4", "jump"),
    ],
)
def test_lists_without_a_header(tmp_path: Path, lines: str, path: str, label: Any) -> None:
    _put(tmp_path, {"kinetics_val_list_videos.txt": lines})
    labels = _load(tmp_path, "kinetics_val_list_videos.txt")
    row = _row(labels, path)
    assert (row.values, row.split) == ({"label": label}, "val")
    assert any("has no header: it was read as a list" in warning for warning in labels.check())


def test_lists_whose_numbers_have_names(tmp_path: Path) -> None:
    _put(tmp_path, {"train.csv": "a.mp4 0\nb.mp4 1", "label_map_k2.txt": "abseiling\nair drumming"})
    assert _row(_load(tmp_path, "train.csv"), "b.mp4").values == {"label": "air drumming"}


def test_hugging_face_metadata(tmp_path: Path) -> None:
    _put(tmp_path, {"videos/train/metadata.csv": "file_name,label\n0001.mp4,run\n0002.mp4,jump"})
    labels = _load(tmp_path, "videos/train/metadata.csv")
    row = _row(labels, "train/0001.mp4")
    assert (row.values, row.split) == ({"label": "run"}, "train")
    lines = '{"file_name": "a.mp4", "label": ["x", "y"]}\n{"file_name": "b.mp4", "label": ["y"]}'
    _put(tmp_path, {"videos/metadata.jsonl": lines})
    assert _row(_load(tmp_path, "videos/metadata.jsonl"), "a.mp4").values == {"label": ["x", "y"]}


def test_label_studio(tmp_path: Path) -> None:
    result = [
        {"from_name": "scene", "type": "choices", "value": {"choices": ["kitchen"]}},
        {
            "from_name": "action",
            "type": "timelinelabels",
            "value": {"ranges": [{"start": 1, "end": 48}], "timelinelabels": ["cut"]},
        },
    ]
    old = {"result": [], "updated_at": "2024-01-01T00:00:00Z"}
    task = {
        "id": 7,
        "data": {"video": "/data/upload/3/1a2b3c4d-a.mp4"},
        "annotations": [old, {"result": result, "updated_at": "2024-02-01T00:00:00Z"}],
    }
    _put(tmp_path, {"export.json": [task]})
    row = _row(_load(tmp_path, "export.json"), "a.mp4")
    assert row.values == {"label_scene": "kitchen"}
    assert _segments(row) == [(0.0, 2.0, {"label_action": "cut"})]
    least = {"video": "s3://b/videos/a.mp4", "id": 1, "choice": "run", "annotator": 1, "annotation_id": 1}
    _put(tmp_path, {"min.json": [least]})
    assert _row(_load(tmp_path, "min.json"), "a.mp4").values == {"label": "run"}


def test_cvat_for_video(tmp_path: Path) -> None:
    _put(
        tmp_path,
        {
            "annotations.xml": """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>5</id><name>n</name><size>50</size><source>a.mp4</source></task></meta>
<track id="0" label="car" source="manual">
<box frame="10" outside="0" keyframe="1" xtl="1" ytl="1" xbr="2" ybr="2"/>
<box frame="19" outside="0" keyframe="1" xtl="1" ytl="1" xbr="2" ybr="2"/>
<box frame="20" outside="1" keyframe="1" xtl="1" ytl="1" xbr="2" ybr="2"/>
<box frame="30" outside="0" keyframe="1" xtl="1" ytl="1" xbr="2" ybr="2"/>
</track></annotations>"""
        },
    )
    row = _row(_load(tmp_path, "annotations.xml"), "a.mp4")
    assert _segments(row) == [(10, 20, {"label": "car"}), (30, 31, {"label": "car"})]
    assert all(segment.in_frames for segment in row.segments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "youtube_id,label,begin\nx,y,0",
            "neither a column `path` nor `uri`; its columns are 'youtube_id', 'label', 'begin'",
        ),
        ("youtube_id,label,start,end\nx,y,0,1", "the nearest layout that is read is Kinetics"),
        ("filepath,labels\nx,y", "the nearest layout that is read is ours, with the columns path, label"),
    ],
)
def test_unknown_layouts_show_their_columns_and_the_nearest(tmp_path: Path, content: str, said: str) -> None:
    _put(tmp_path, {"l.csv": content})
    with pytest.raises(UserError, match=said) as caught:
        _load(tmp_path, "l.csv")
    assert len(str(caught.value).splitlines()) == 2


def test_the_last_file_wins_over_folders_and_corrections_over_all(tmp_path: Path) -> None:
    _put(
        tmp_path,
        {
            "videos/run/a.mp4": "x",
            "videos/run/b.mp4": "x",
            "one.csv": "path,label,label_scene\nrun/a.mp4,one,in\nrun/b.mp4,one,out",
            "two.tsv": "path\tlabel\nrun/a.mp4\ttwo",
            "corrections.csv": "uri,window,label,clip_start_s,clip_end_s,by,at\n"
            "/x/videos/run/a.mp4,0,newest,,,me,2026-03-01T00:00:00Z\n"
            "/x/videos/run/a.mp4,0,older,,,me,2026-02-01T00:00:00Z\n"
            "/x/videos/run/a.mp4,3,jump,6.0,8.0,me,2026-02-01T00:00:00Z\n"
            "/x/videos/run/b.mp4,0,,,,me,2026-02-01T00:00:00Z",
        },
    )
    labels = load_labels(
        [str(tmp_path / name) for name in ("corrections.csv", "one.csv", "two.tsv")] + ["folders"],
        str(tmp_path / "videos"),
        DEFAULT_OPTIONS,
    )
    a, b, c = (_row(labels, path) for path in ("run/a.mp4", "run/b.mp4", "run/c.mp4"))
    assert a.values == {"label": "newest", "label_scene": "in"}
    assert _segments(a) == [(6.0, 8.0, {"label": "jump"})]
    assert (b.values, b.corrected_at is None) == ({"label": None, "label_scene": None}, False)
    assert c.values == {"label": "run"}
    without = load_labels(
        [str(tmp_path / "one.csv"), str(tmp_path / "two.tsv")], str(tmp_path / "videos"), DEFAULT_OPTIONS
    )
    assert _row(without, "run/a.mp4").values == {"label": "two", "label_scene": "in"}
