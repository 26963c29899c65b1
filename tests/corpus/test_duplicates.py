"""`index --duplicates`: the same content, and what looks the same, is marked; splits can hold it together."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.corpus import manifest_rows, put_text, run_index
from tubelet.config import UserError
from tubelet.corpus import duplicates, fingerprinting, index
from tubelet.corpus.duplicates import Videos, originals
from tubelet.corpus.likeness import FEW, FRAMES, HASHES, VIEW, Hashes, alike, hashes_of, unlike
from tubelet.corpus.probing import Prober
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


def groups_one_by_one(videos: Videos) -> list[int]:
    """What :func:`originals` finds, video by video and pair by pair."""
    count = len(videos.contents)
    groups = [{number} for number in range(count)]
    last: dict[tuple[object, ...], tuple[int, int]] = {}
    for number in range(count):
        names: list[tuple[object, ...]] = [("content", videos.contents[number])]
        if videos.hashes is not None:
            for frame in np.flatnonzero(videos.hashes.said[number, :FRAMES]).tolist():
                bits = int(videos.hashes.bits[number, frame])
                names += [(frame, band, bits >> 16 * band & 0xFFFF) for band in range(4)]
        for name in names:
            if name == ("content", 0):
                continue
            first, before = last.get(name, (number, number))
            last[name] = (first, number)
            for other in {first, before} - {number}:
                if name[0] == "content" or same(videos, other, number):
                    joined = groups[other] | groups[number]
                    for member in joined:
                        groups[member] = joined
    return [min(group) for group in groups]


def same(videos: Videos, one: int, two: int) -> bool:
    assert videos.hashes is not None
    each = (Hashes(videos.hashes.bits[[n]], videos.hashes.said[[n]]) for n in (one, two))
    return bool(alike(*each, (videos.durations_s[[one]], videos.durations_s[[two]]))[0])


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_found_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of copies, each a few bits further away, titles that many share, frames that say nothing."""
    monkeypatch.setattr(duplicates, "_PAIRS", 7)
    draw, count = np.random.default_rng(seed), 240
    bits = draw.integers(0, 1 << 64, (count, HASHES), np.uint64)
    for number in range(1, count):
        if draw.random() < 0.5:
            changed = np.uint64(1) << draw.integers(0, 64, (HASHES, 5)).astype(np.uint64)
            bits[number] = bits[draw.integers(number)] ^ np.bitwise_or.reduce(changed, axis=1)
    bits[draw.random(count) < 0.4, 0] = bits[0, 0]
    bits[draw.random(count) < 0.2, 3:6] = bits[1, 3:6]
    said = draw.random((count, HASHES)) < draw.choice([0.3, 0.9, 1.0], (count, 1))
    durations_s = draw.choice([2.0, 2.1, 50.0, 50.9, 51.5, np.nan], count)
    contents = draw.integers(0, 400, count).astype(np.uint64) * (draw.random(count) < 0.3)
    for hashes in (None, Hashes(bits, said)):
        videos = Videos(contents, durations_s, hashes)
        found = originals(videos).tolist()
        assert found == groups_one_by_one(videos)
        assert 20 < sum(first != number for number, first in enumerate(found)) < count - 20 or hashes is None


def test_few_frames_reject_only_what_all_do() -> None:
    draw, count = np.random.default_rng(0), 20_000
    one = draw.integers(0, 1 << 64, (count, HASHES), np.uint64)
    differ = draw.integers(0, 1 << 64, (4, count, HASHES), np.uint64)
    two = one ^ np.where(
        draw.random((count, 1)) < 0.5, differ[0] & differ[1] & differ[2], differ[3] & differ[1]
    )
    said = [draw.random((count, HASHES)) < 0.8 for _ in range(2)]
    unknown = np.full(count, np.nan)
    yes = alike(Hashes(one, said[0]), Hashes(two, said[1]), (unknown, unknown))
    no = unlike(
        *(Hashes(bits[:, :FEW], there[:, :FEW]) for bits, there in zip((one, two), said, strict=True))
    )
    assert yes.any()
    assert no.any()
    assert not (yes & no).any()


def test_only_what_is_not_known_is_read(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, out = tmp_path / "videos", str(tmp_path / "manifest")
    shutil.copytree(films, videos)
    asked: list[tuple[str, bool, bool]] = []

    def look(rows: Iterable[Any], prober: Prober) -> Iterator[Any]:
        for row in fingerprinting.fingerprints(rows, prober):
            asked.append((row["path"], row["wants_digest"], row["wants_hashes"]))
            yield row

    monkeypatch.setattr(index, "fingerprints", look)
    run_index(str(videos), out, duplicates="near", split="train=1")
    names = ("a", "a-copy", "b-again", "c-same-room", "d-other")
    assert sorted(asked) == sorted((f"{name}.mp4", name in ("a", "a-copy"), True) for name in names)
    # What an earlier version kept has its rows in any order.
    (place,) = Path(out, "_notes").glob("fingerprints*")
    kept = pq.read_table(place)
    assert sorted(kept["key"].to_pylist()) == sorted(
        row["key"] for row in manifest_rows(out).values() if row["status"] == "ok"
    )
    pq.write_table(kept.take(np.arange(kept.num_rows)[::-1]), place)
    asked.clear()
    shutil.copy(videos / "d-other.mp4", videos / "e.mp4")
    assert run_index(str(videos), out, update=True).duplicates == 3
    assert sorted(asked) == [("d-other.mp4", True, False), ("e.mp4", True, True)]
    asked.clear()
    assert run_index(str(videos), out, update=True).duplicates == 3
    assert not asked


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
