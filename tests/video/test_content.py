"""What an object holds is told from its content, never from its name; names never make FFmpeg read more."""

from __future__ import annotations

import shutil
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.video import make_video, pictures
from tubelet.video import Content, DecodeError, Sandbox, decode_clip, probe
from tubelet.video.content import HEAD_BYTES, recognise

X264 = {"preset": "veryfast"}


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    return make_video(tmp_path_factory.mktemp("film") / "a.mp4", options=X264, frames=12).read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a%03d.jpg", "a.txt", "a.m3u8", "a.mp3", "concat:a", "a.bin"])
def test_a_name_does_not_decide_how_a_file_is_read(tmp_path: Path, film: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(film)
    for number in range(3):  # neighbours that an image sequence would take
        (tmp_path / f"a{number:03d}.jpg").write_bytes(b"not a picture")
    assert (probe(path).codec, probe(path).frames) == ("h264", 12)
    np.testing.assert_array_equal(decode_clip(path, frames=[5]).frames, decode_clip(film, frames=[5]).frames)


def test_text_is_not_drawn_as_pictures(tmp_path: Path) -> None:
    for name in ("a.txt", "a.nfo", "a.ans"):
        (tmp_path / name).write_bytes(b"some lines of text\n" * 200)
        with pytest.raises(DecodeError) as caught:
            probe(tmp_path / name)
        assert (caught.value.code, caught.value.content) == ("open_error", Content.TEXT)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile 'secret.mp4'\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_no_other_file_is_opened_and_no_address_reached(tmp_path: Path, film: bytes, content: bytes) -> None:
    (tmp_path / "secret.mp4").write_bytes(film)
    (tmp_path / "a.mp4").write_bytes(content)
    code = "import sys; from tubelet.video import probe; probe(sys.argv[1])"
    log = tmp_path / "calls"
    command = ["strace", "-f", "-e", "trace=openat,connect", "-o", str(log), sys.executable, "-c", code]
    subprocess.run([*command, str(tmp_path / "a.mp4")], check=False, capture_output=True, timeout=120)
    calls = log.read_text()
    assert "a.mp4" in calls
    assert "secret" not in calls
    assert "connect(" not in calls


def _still(path: Path, frames: int = 1) -> Path:
    images = [Image.fromarray(picture) for picture in pictures(frames, 96, 64)]
    images[0].save(path, save_all=frames > 1, append_images=images[1:], duration=100)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.avif", "a.bmp", "a.tiff"])
def test_one_picture_is_a_still(tmp_path: Path, name: str) -> None:
    path = _still(tmp_path / name)
    assert probe(path).still
    with Sandbox() as box:
        assert box.probe(path.rename(tmp_path / "a.mp4")).still


@pytest.mark.parametrize("name", ["a.gif", "a.avif", "a.png"])
def test_an_animation_is_a_video(tmp_path: Path, name: str) -> None:
    path = _still(tmp_path / name, frames=5)
    assert not probe(path).still
    assert len(decode_clip(path, times_s=[0.0, 0.25, 9.0]).frames) == 3


def test_a_film_of_one_frame_is_a_video(tmp_path: Path) -> None:
    assert not probe(make_video(tmp_path / "a.mp4", options=X264, frames=1)).still


def test_sound_is_recognised(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.mp4"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with Sandbox() as box, pytest.raises(DecodeError) as caught:
        box.probe(tmp_path / "a.mp4")
    assert (caught.value.code, caught.value.content) == ("no_video_stream", Content.AUDIO)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_poster_track_never_wins_over_the_film(tmp_path: Path, name: str) -> None:
    """A larger picture of one frame, not marked as a cover, beside the film; both orders."""
    for poster_first in (True, False):
        path = tmp_path / f"{poster_first}-{name}"
        with av.open(str(path), "w") as container:
            sizes = {"film": (160, 96), "poster": (320, 192)}
            streams = {}
            for kind in sorted(sizes, reverse=poster_first):
                stream = container.add_stream("mjpeg", rate=25)
                stream.width, stream.height = sizes[kind]
                stream.pix_fmt = "yuvj420p"
                streams[kind] = stream
            for kind, count in (("poster", 1), ("film", 10)):
                for number, picture in enumerate(pictures(count, *sizes[kind])):
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    container.mux(streams[kind].encode(frame))
                container.mux(streams[kind].encode(None))
        assert (probe(path).width, decode_clip(path, frames=[9]).frames.shape[1:3]) == (160, (96, 160))


HEADS = {
    b"": Content.EMPTY,
    b"PK\x03\x04\x14\x00": Content.ARCHIVE,
    b"1\n00:00:01,000 --> 00:00:02,000\nhello\n": Content.SUBTITLE,
    b"WEBVTT\n\n": Content.SUBTITLE,
    b'{"label": "run"}': Content.TEXT,
    "name;größe\n".encode("latin-1"): Content.TEXT,
    b"\xff\xfea\x00\t\x00b\x00\r\x00\n\x00": Content.TEXT,
    ("é" * 3000).encode()[: HEAD_BYTES - 1]: Content.TEXT,
    b"%PDF-1.7\n": Content.DOCUMENT,
    b"\x93NUMPY\x01\x00": Content.DATA,
    b"\xff\xd8\xff\xe0\x00\x10JFIF": Content.STILL,
    b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00": Content.STILL,
    b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00": None,
    np.random.default_rng(7).bytes(HEAD_BYTES): None,
    b"\x00" * 64: None,
}


@pytest.mark.parametrize(("head", "content"), HEADS.items(), ids=range(len(HEADS)))
def test_content_is_recognised(head: bytes, content: Content | None) -> None:
    assert recognise(head) is content
