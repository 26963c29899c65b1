"""The demo's corpus: real H.264 with B-frames, the same by seed, and a class that only motion tells."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tubelet_jobs.demo_corpus import MOTIONS, Corpus, encode, render, write_corpus

PER_CLASS = 50


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corpus]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder, per_class=2, inbox=9, broken=4, seed=3)


def test_all_files_are_there_and_nothing_else(written: tuple[Path, Corpus]) -> None:
    folder, corpus = written
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*corpus.labelled, *corpus.inbox, *corpus.broken, "labels.csv"}
    assert [list(corpus.labelled.values()).count(motion) for motion in MOTIONS] == [2] * 6


def test_labels_name_paths_below_labelled(written: tuple[Path, Corpus]) -> None:
    folder, corpus = written
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = {f"labelled/{row['path']}": row["label"] for row in csv.DictReader(file)}
    assert rows == corpus.labelled


def test_names_have_spaces_and_accents(written: tuple[Path, Corpus]) -> None:
    _, corpus = written
    assert any("é" in path and " " in path for path in corpus.labelled)
    assert any("é" in path and " " in path for path in corpus.inbox)


def test_same_seed_same_bytes(written: tuple[Path, Corpus], tmp_path: Path) -> None:
    folder, corpus = written
    assert write_corpus(tmp_path, per_class=2, inbox=9, broken=4, seed=3) == corpus
    for path in [*corpus.labelled, *corpus.inbox, *corpus.broken]:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()
    write_corpus(tmp_path, per_class=1, inbox=0, broken=0, seed=4)
    path = "labelled/left/0000.mp4"
    assert (tmp_path / path).read_bytes() != (folder / path).read_bytes()


def test_videos_are_h264_with_b_frames(written: tuple[Path, Corpus]) -> None:
    folder, corpus = written
    for path in [*corpus.labelled, *corpus.inbox]:
        with av.open(str(folder / path)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert stream.codec_context.name == "h264"
            assert len(frames) == stream.frames >= 16
            assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)


def test_broken_files_do_not_open(written: tuple[Path, Corpus]) -> None:
    folder, corpus = written
    assert len(corpus.broken) == 4
    for path in corpus.broken:
        with pytest.raises(av.FFmpegError), av.open(str(folder / path)) as container:
            list(container.decode(video=0))


def test_first_frame_is_the_same_whatever_the_motion() -> None:
    firsts = [render(motion, np.random.default_rng(5))[0][0] for motion in MOTIONS]
    assert all((first == firsts[0]).all() for first in firsts)


def _decoded(data: bytes) -> list[npt.NDArray[np.uint8]]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _thumbnail(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The middle 64x64 in blocks of 4x4, three colours: 768 numbers."""
    top, left = (frame.shape[0] - 64) // 2, (frame.shape[1] - 64) // 2
    middle = frame[top : top + 64, left : left + 64].astype(np.float64)
    return middle.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))


@pytest.fixture(scope="module")
def thumbnails() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Thumbnails of decoded frames 0, 1, 7, 8 and 15, ``(N, 5, 16, 16, 3)``, and the classes ``(N,)``."""
    images, classes = [], []
    for number in range(PER_CLASS * len(MOTIONS)):
        kind = number % len(MOTIONS)
        frames = _decoded(encode(*render(MOTIONS[kind], np.random.default_rng([11, number]))))
        images.append([_thumbnail(frames[i]) for i in (0, 1, 7, 8, 15)])
        classes.append(kind)
    return np.array(images), np.array(classes)


def _accuracy(features: npt.NDArray[np.float64], classes: npt.NDArray[np.int64]) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    return float(cross_val_score(model, features.reshape(len(classes), -1), classes, cv=5).mean())


def test_no_single_frame_tells_the_class(
    thumbnails: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]],
) -> None:
    images, classes = thumbnails
    # Chance is 1/6; three standard deviations of it over 300 videos are 0.065.
    for index in range(images.shape[1]):
        assert _accuracy(images[:, index], classes) < 1 / 6 + 0.065


def test_two_frames_tell_the_class(
    thumbnails: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]],
) -> None:
    """The same classifier reads the motion once it gets products of neighbours in space and time."""
    images, classes = thumbnails
    grey = images.mean(axis=-1)
    before, after = grey[:, 2], grey[:, 3]
    change = after - before
    down, right = np.gradient(before, axis=(1, 2))
    flows = np.stack([change * down, change * right], axis=-1)
    coarse = flows.reshape(len(classes), 4, 4, 4, 4, 2).mean(axis=(2, 4))
    assert _accuracy(coarse, classes) > 0.6
