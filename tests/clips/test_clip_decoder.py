"""Rows that name videos become rows with tubelets, whatever the videos are like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from support import S3Bucket
from support.training import moving_square, write_video
from tubelet import storage
from tubelet.clips import ClipDecoder, ClipSpec, TrainCrop, parse_views, tubelets_to_clip
from tubelet.video import DecoderStartError, Sandbox
from tubelet.video.errors import ClipError

SPEC = ClipSpec(frames=8, stride=None, size=32, short_side=40, tubelet=(2, 16, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "good ä.mp4", moving_square(1, 0))
    write_video(folder / "other.mp4", moving_square(-1, 9))
    (folder / "bad.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def decoder() -> Iterator[ClipDecoder]:
    decoder = ClipDecoder(SPEC)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def train_decoder() -> Iterator[ClipDecoder]:
    decoder = ClipDecoder(SPEC, train=TrainCrop(), seed=3)
    yield decoder
    decoder.close()


def rows(*paths: str, **more: list[object]) -> dict[str, np.ndarray]:
    batch = {
        "key": np.array([Path(p).name for p in paths], object),
        "uri": np.array(paths, object),
        "etag": np.array([None] * len(paths), object),
        "size": np.array([float("nan")] * len(paths)),
    }
    return batch | {name: np.array(values) for name, values in more.items()}


def test_views_of_good_and_broken_videos(decoder: ClipDecoder, folder: Path) -> None:
    good, bad = str(folder / "good ä.mp4"), str(folder / "bad.mp4")
    out = decoder(rows(good, bad, str(folder / "missing.mp4"), weight=[1.0, 1.0, 1.0]))
    assert out["tubelets"].shape == (3, 1, SPEC.tokens, SPEC.token_bytes)
    assert out["tubelets"].dtype == np.uint8
    assert out["error_code"][0] == ""
    assert all(out["error_code"][1:])
    assert all(out["error"][1:])
    assert out["weight"].tolist() == [1, 0, 0]
    assert not out["tubelets"][1:].any()
    assert np.isnan(out["clip_times_s"][1:]).all()
    clip = tubelets_to_clip(out["tubelets"][0, 0], 8, 32, 32, SPEC.tubelet)
    assert 150 < clip.max() < 256
    assert np.allclose(np.diff(out["clip_times_s"][0, 0]), 0.2)


def test_decoder_that_cannot_start_is_no_row_s_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('no libavcodec')\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DecoderStartError, match="no libavcodec"):
        ClipDecoder(SPEC)(rows(str(folder / "other.mp4")))


def test_several_views(folder: Path) -> None:
    decoder = ClipDecoder(SPEC, views=(2, 3))
    try:
        out = decoder(rows(str(folder / "good ä.mp4")))
    finally:
        decoder.close()
    assert out["tubelets"].shape == (1, 6, SPEC.tokens, SPEC.token_bytes)
    assert (out["clip_times_s"][0, 0] != out["clip_times_s"][0, 3]).any()


def test_a_sample_depends_on_seed_epoch_key_only(train_decoder: ClipDecoder, folder: Path) -> None:
    good, other = str(folder / "good ä.mp4"), str(folder / "other.mp4")
    first = train_decoder(rows(good, other, good, good, epoch=[0, 0, 1, 0], repeat=[0, 0, 0, 1]))
    assert first["tubelets"].shape == (4, SPEC.tokens, SPEC.token_bytes)
    alone = train_decoder(rows(good, epoch=[0], repeat=[0]))
    assert np.array_equal(first["tubelets"][0], alone["tubelets"][0])
    assert len({first["tubelets"][i].tobytes() for i in (0, 2, 3)}) == 3
    reseeded = ClipDecoder(SPEC, train=TrainCrop(), seed=4)
    try:
        differs = reseeded(rows(good, epoch=[0], repeat=[0]))
    finally:
        reseeded.close()
    assert not np.array_equal(differs["tubelets"][0], alone["tubelets"][0])


def test_a_segment_of_a_video(decoder: ClipDecoder, folder: Path) -> None:
    path = str(folder / "other.mp4")
    out = decoder(rows(path, path, clip_start_s=[0.8, float("nan")], clip_end_s=[1.6, float("nan")]))
    assert out["clip_times_s"][0].min() >= 0.8 - 1e-6
    assert out["clip_times_s"][0].max() < 1.6
    assert out["clip_times_s"][1].min() < 0.2


def test_the_same_from_a_bucket(folder: Path, s3: S3Bucket) -> None:
    uri = f"{s3.uri}/a b/good ä.mp4"
    storage.upload_file(folder / "good ä.mp4", uri)
    info = storage.stat(uri)
    assert info is not None
    batch = rows(uri, uri, str(folder / "good ä.mp4"))
    batch["size"] = np.array([info.size_bytes] * 3)
    batch["etag"] = np.array([info.etag, "another version", None], object)
    decoder = ClipDecoder(SPEC)  # its process starts now, with the server's AWS_* variables
    try:
        out = decoder(batch)
    finally:
        decoder.close()
    assert np.array_equal(out["tubelets"][0], out["tubelets"][2])
    assert out["error_code"].tolist()[0] == ""
    assert out["error_code"][1], "another content than the manifest's is an error, not a silent substitute"


def test_several_specs_in_one_pass(folder: Path) -> None:
    small = ClipSpec(frames=4, stride=None, size=16, short_side=16, tubelet=(2, 8, 8))
    both = ClipDecoder((SPEC, small), views=(2, 1))
    alone = [ClipDecoder(spec, views=(2, 1)) for spec in (SPEC, small)]
    try:
        batch = rows(str(folder / "good ä.mp4"), str(folder / "bad.mp4"))
        out, one, two = both(batch), alone[0](batch), alone[1](batch)
    finally:
        for decoder in (both, *alone):
            decoder.close()
    assert np.array_equal(out["tubelets"], one["tubelets"])
    assert np.array_equal(out["tubelets_1"], two["tubelets"])
    assert np.array_equal(out["clip_times_s_1"], two["clip_times_s"], equal_nan=True)
    assert out["failed"].tolist() == [False, True]
    with pytest.raises(ValueError, match="one spec"):
        ClipDecoder((SPEC, small), train=TrainCrop())


def test_a_local_file_replaced_since_it_was_listed(
    decoder: ClipDecoder, train_decoder: ClipDecoder, tmp_path: Path
) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, moving_square(1, 0))
    info = storage.stat(path)
    assert info is not None
    batch = rows(str(path), str(path), weight=[1.0, 1.0], epoch=[0, 0])
    batch["etag"] = np.array([info.etag, None], object)
    write_video(path, moving_square(-1, 9))
    for one in (decoder, train_decoder):
        out = one(batch)
        assert out["error_code"].tolist() == ["changed", ""]
        assert out["failed"].tolist() == [True, False]
        assert out["weight"].tolist() == [0, 1]
        assert not out["tubelets"][0].any()


def test_whatever_is_wrong_with_a_row_is_its_reason(
    decoder: ClipDecoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = decoder(rows("ftp://host/a.mp4", "s3://", str(folder / "good ä.mp4")))
    assert out["error_code"].tolist() == ["bad_uri", "bad_uri", ""]
    assert "the scheme is 'ftp'" in out["error"][0]
    batch = rows("a", "b")
    batch["source"] = np.array([(folder / "good ä.mp4").read_bytes(), b"none"], object)
    assert decoder(batch)["error_code"].tolist() == ["", "open_error"]

    for error, code in (
        (ClipError("frame 7 asked for, but there are 3 frames"), "no_frames"),
        (KeyError("ours"), "internal_error"),
    ):
        monkeypatch.setattr(Sandbox, "decode_views", Mock(side_effect=error))
        assert decoder(rows("a.mp4"))["error_code"].tolist() == [code]


@pytest.mark.parametrize(("text", "views"), [("4x3", (4, 3)), ("1x2", (1, 2)), ("2X1", (2, 1))])
def test_views_as_text(text: str, views: tuple[int, int]) -> None:
    assert parse_views(text) == views


@pytest.mark.parametrize("text", ["", "4", "4x", "0x1", "4x3x2", "-1x1", "many"])
def test_views_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="for example 4x3"):
        parse_views(text)
