"""`index --duplicates`: the same content, and what looks the same, is marked; splits can hold it together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.corpus import manifest_rows, put_text, run_index
from tubelet.config import UserError
from tubelet.corpus.duplicates import Videos, originals
from tubelet.corpus.likeness import HASHES, VIEW, Hashes, alike, hashes_of
from tubelet.corpus.versions import Record
from tubelet.video import CopySpec, decode_views, transcode

NOT_KNOWN = (np.array([np.nan]), np.array([np.nan]))


def scene(path: Path, seed: int, *, shift: int = 0) -> Path:
    """A square that wanders over a fixed scene; ``shift`` moves it otherwise, as in another clip."""
    import av

    draw = np.random.default_rng(seed)
    room = np.kron(draw.integers(30, 220, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "20", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(30):
            picture = room.copy()
            left, top = (13 * number + 47 * shift) % 96, (7 * number + 31 * shift) % 64
            if shift:
                left, top = 95 - left, (top * 3) % 64
            picture[top : top + 28, left : left + 28] = (250, 250, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def hashes(path: Path) -> Hashes:
    found = hashes_of(decode_views(str(path), [VIEW]).clips[0])
    return Hashes(found.bits[None], found.said[None])


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a``; its copy; ``a`` encoded again, smaller; another clip of the same scene; another scene."""
    folder = tmp_path_factory.mktemp("films")
    first = scene(folder / "a.mp4", 1)
    shutil.copy(first, folder / "a-copy.mp4")
    again = transcode(str(first), CopySpec(short_side=48, crf=30)).file.read()
    (folder / "b-again.mp4").write_bytes(again)
    scene(folder / "c-same-room.mp4", 1, shift=1)
    scene(folder / "d-other.mp4", 2)
    (folder / "broken.mp4").write_bytes(b"no video " * 40)
    return folder


def test_encoded_again_is_alike_and_another_clip_of_the_scene_is_not(films: Path) -> None:
    first = hashes(films / "a.mp4")
    assert alike(first, hashes(films / "b-again.mp4"), NOT_KNOWN)[0]
    assert not alike(first, hashes(films / "c-same-room.mp4"), NOT_KNOWN)[0]
    assert not alike(first, hashes(films / "d-other.mp4"), NOT_KNOWN)[0]
    assert not alike(first, hashes(films / "b-again.mp4"), (np.array([3.0]), np.array([9.0])))[0]


def test_pictures_without_detail_say_nothing(tmp_path: Path) -> None:
    black = [np.zeros((8, 64, 64, 3), np.uint8), np.full((8, 64, 64, 3), 3, np.uint8)]
    from tubelet.video import Clip

    one, two = (hashes_of(Clip(frames, np.arange(8.0))) for frames in black)
    assert not one.said.any()
    assert not alike(
        Hashes(one.bits[None], one.said[None]), Hashes(two.bits[None], two.said[None]), NOT_KNOWN
    )[0]


def test_the_first_stands_for_all_and_chains_join() -> None:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 1 << 63, (6, HASHES)).astype(np.uint64)
    said = np.ones((6, HASHES), np.bool_)
    bits[3] = bits[1] ^ np.uint64(0b111)  # near the second
    contents = np.array([0, 0, 7, 0, 7, 9], np.uint64)
    bits[5] = bits[3]
    found = originals(Videos(contents, np.full(6, np.nan), Hashes(bits, said)))
    assert found.tolist() == [0, 1, 2, 1, 2, 1]
    assert originals(Videos(contents, np.full(6, np.nan), None)).tolist() == [0, 1, 2, 3, 2, 5]


@pytest.mark.parametrize("how", ["exact", "near"])
def test_index_marks_duplicates(how: str, films: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "manifest")
    sides = {"a": "train", "a-copy": "test", "b-again": "train", "c-same-room": "test", "d-other": "test"}
    lines = [f"{name}.mp4,x,{split}" for name, split in sides.items()]
    labels = put_text(str(tmp_path / "l.csv"), "path,label,split", *lines)
    summary = run_index(str(films), out, labels=(labels,), duplicates=how)
    rows = manifest_rows(out)
    assert summary.duplicates == (2 if how == "near" else 1)
    assert len(Record.read(out).versions) == 1, "no reader may see one without the marks"
    first = rows["a-copy.mp4"]["key"]  # the first by path
    wanted = {"a.mp4": first} | ({"b-again.mp4": first} if how == "near" else {})
    assert {path: row["duplicate_of"] for path, row in rows.items() if row["duplicate_of"]} == wanted
    (warning,) = (text for text in summary.warnings if "duplicates" in text)
    assert warning.startswith(f"{summary.duplicates} duplicates lie on both sides")

    before = {path: row["split"] for path, row in rows.items()}
    summary = run_index(str(films), out, update=True)
    assert (summary.probed, summary.duplicates) == (0, len(wanted))
    assert {path: row["split"] for path, row in manifest_rows(out).items()} == before


def test_duplicates_share_a_split(films: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "videos", str(tmp_path / "manifest")
    source.mkdir()
    for number in range(12):
        shutil.copy(films / ("a.mp4" if number < 8 else "d-other.mp4"), source / f"{number:02d}.mp4")
    summary = run_index(str(source), out, duplicates="exact", split="together:train=0.5,test=0.5")
    rows = manifest_rows(out)
    assert summary.duplicates == 10
    assert len({rows[f"{number:02d}.mp4"]["split"] for number in range(8)}) == 1
    assert len({rows[f"{number:02d}.mp4"]["split"] for number in range(8, 12)}) == 1
    assert sum(summary.splits.values()) == 12
    assert not summary.warnings
    # It stays so, and one that comes later joins its original.
    shutil.copy(films / "a.mp4", source / "0-new.mp4")
    assert run_index(str(source), out, update=True).duplicates == 11
    after = manifest_rows(out)
    assert {path: after[path]["split"] for path in rows} == {path: row["split"] for path, row in rows.items()}
    assert after["0-new.mp4"]["split"] == rows["00.mp4"]["split"]
    assert after["0-new.mp4"]["duplicate_of"] == rows["00.mp4"]["key"]

    with pytest.raises(UserError, match="needs --duplicates"):
        run_index(str(source), str(tmp_path / "other"), split="together:train=1")
    with pytest.raises(UserError, match="a column's splits stay"):
        run_index(str(source), str(tmp_path / "other"), duplicates="exact", split="together:column:split")
