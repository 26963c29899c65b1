"""Objects in a bucket: only the bytes that are needed travel."""

from __future__ import annotations

from pathlib import Path

import av
import boto3
import numpy as np
import pytest
from support import S3Bucket
from support.video import make_video
from tubelet.storage.opener import ObjectOpener
from tubelet.video import Dense, Linspace, Sandbox, ShortSide, Uniform, View, decode_views, probe

MIB = 1 << 20


class Counted:
    """An opener that keeps what it opened, to ask for the bytes it fetched."""

    def __init__(self, opener: ObjectOpener) -> None:
        self.opener = opener

    def __call__(self):
        self.file = self.opener()
        return self.file


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> tuple[Path, Path]:
    """Ten minutes, about 50 MB, with its index at the front and at the end."""
    folder = tmp_path_factory.mktemp("remote")
    options = {"preset": "ultrafast", "bf": "2", "qp": "1", "sc_threshold": "0"}
    once = make_video(folder / "once.mp4", frames=300, size=(232, 152), gop=60, options=options)
    return (
        repeated(once, folder / "front.mp4", {"movflags": "+faststart"}),
        repeated(once, folder / "end.mp4", {}),
    )


def repeated(once: Path, path: Path, options: dict[str, str], minutes: int = 10) -> Path:
    """The same ten seconds over and over, without encoding them again."""
    with av.open(str(once)) as source:
        packets = [
            (p.pts, p.dts, p.is_keyframe, p.time_base, bytes(p)) for p in source.demux(video=0) if p.size
        ]
        with av.open(str(path), "w", options=options) as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for turn in range(minutes * 6):
                for pts, dts, key, base, data in packets:
                    packet = av.Packet(data)
                    shift = round(turn * 10 / base)
                    packet.time_base = base
                    packet.pts, packet.dts = pts + shift, dts + shift
                    packet.is_keyframe, packet.stream = key, stream
                    out.mux(packet)
    return path


@pytest.fixture(params=["front", "end"])
def remote(request, long_video, s3: S3Bucket) -> tuple[Path, ObjectOpener]:
    path = long_video[0 if request.param == "front" else 1]
    key = f"{s3.prefix}/{path.name}"
    boto3.client("s3").upload_file(str(path), s3.bucket, key)
    return path, ObjectOpener(f"s3://{s3.bucket}/{key}", path.stat().st_size)


def test_probing_reads_the_index_only(remote) -> None:
    path, opener = remote
    assert path.stat().st_size > 40 * MIB
    counted = Counted(opener)
    info = probe(counted)
    assert info == probe(path)
    assert info.frames == 18_000
    assert info.keyframes_s is not None
    assert len(info.keyframes_s) == 300
    assert counted.file.bytes_fetched < 2 * MIB
    assert counted.file.requests < 20


def test_a_clip_from_the_middle_reads_its_part_only(remote) -> None:
    path, opener = remote
    views = [View(Dense(32, 2, Linspace(1, 3)), ShortSide(96, 64))]
    counted = Counted(opener)
    there = decode_views(counted, views)
    here = decode_views(path, views)
    np.testing.assert_array_equal(there.clips[0].frames, here.clips[0].frames)
    np.testing.assert_array_equal(there.clips[0].times_s, here.clips[0].times_s)
    assert counted.file.bytes_fetched < 0.1 * path.stat().st_size
    assert counted.file.requests < 24
    with Sandbox() as sandbox:
        in_child = sandbox.decode_views(opener, views)
    np.testing.assert_array_equal(in_child.clips[0].frames, here.clips[0].frames)


def test_a_lost_object_is_not_found(s3: S3Bucket) -> None:
    from tubelet.video import DecodeError

    with Sandbox() as sandbox, pytest.raises(DecodeError) as caught:
        sandbox.probe(ObjectOpener(f"s3://{s3.bucket}/{s3.prefix}/none.mp4", 1000))
    assert caught.value.code == "not_found"


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv", "webm"])
def test_joined_recordings_are_as_long_in_a_store(suffix: str, tmp_path: Path, s3: S3Bucket) -> None:
    """Their headers tell of one recording; what they say of the clock differs."""
    codecs = {
        "mpg": {"codec": "mpeg2video"},
        "webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    }
    shape = codecs.get(suffix, {"options": {"preset": "ultrafast"}})
    once = make_video(tmp_path / f"once.{suffix}", frames=30, size=(96, 64), **shape).read_bytes()
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(once * 2)
    key = f"{s3.prefix}/{path.name}"
    boto3.client("s3").upload_file(str(path), s3.bucket, key)
    opener = ObjectOpener(f"s3://{s3.bucket}/{key}", path.stat().st_size)
    here, there = probe(path), probe(opener)
    assert there == here
    assert there.duration_s == pytest.approx(2.0, abs=0.05)
    views = [View(Uniform(8), ShortSide(32))]
    assert decode_views(opener, views).info == decode_views(path, views).info
