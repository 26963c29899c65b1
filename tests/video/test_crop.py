"""The part of a picture that the container says is shown (MP4 `clap`, Matroska PixelCrop) is shown."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from support.video import make_video
from tubelet.video import ShortSide, Uniform, View, decode_clip, decode_views, probe

X264 = {"preset": "veryfast"}
# Rows 10 to 90 and columns 20 to 140 of 96 x 160.
TOP, LEFT, HEIGHT, WIDTH = 10, 20, 80, 120


def with_clap(data: bytes) -> bytes:
    """An MP4 whose index lies at its end, with a clean aperture in its first sample entry."""
    right, down = LEFT + WIDTH / 2 - 80, TOP + HEIGHT / 2 - 48
    numbers = (WIDTH, 1, HEIGHT, 1, int(right * 2), 2, int(down * 2), 2)
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", *numbers)
    out, position = bytearray(data), 0
    path = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")
    for name in path:
        position = data.index(name, position) - 4
        (size,) = struct.unpack(">I", data[position : position + 4])
        out[position : position + 4] = struct.pack(">I", size + len(clap))
        end = position + size
        position += 8
    return bytes(out[:end]) + clap + bytes(out[end:])


def with_pixel_crop(data: bytes) -> bytes:
    """A Matroska file with margins in its first video element; a gap before it shrinks by as much."""
    crops = {0x54BB: TOP, 0x54AA: 96 - TOP - HEIGHT, 0x54CC: LEFT, 0x54DD: 160 - LEFT - WIDTH}
    extra = b"".join(struct.pack(">HBB", kind, 0x81, value) for kind, value in crops.items())
    tracks = data.index(b"\x16\x54\xae\x6b", data.index(b"\x15\x49\xa9\x66", 120))  # past the list of parts
    track = data.index(b"\xae\x01", tracks + 12)  # after a checksum, which may hold any byte
    found = re.compile(rb"\xe0(?=[\x80-\xff]\xb0|\x01.{7}\xb0)", re.DOTALL).search(data, track)
    assert found is not None
    video = found.start()
    out = bytearray(data)
    out[tracks + 6] = 0xEC  # the checksum becomes a gap
    for position, id_length in ((tracks, 4), (track, 1), (video, 1)):
        first = data[position + id_length]
        length = 9 - first.bit_length()
        span = slice(position + id_length, position + id_length + length)
        size = int.from_bytes(data[span], "big") + len(extra)
        assert size.bit_length() <= 7 * length + 1
        out[span] = size.to_bytes(length, "big")
        end = position + id_length + length
    out[end:end] = extra
    segment = data.index(b"\x18\x53\x80\x67") + 4
    out[segment : segment + 8] = b"\x01" + b"\xff" * 7  # of unknown size
    return bytes(out)


@pytest.fixture(scope="module", params=["a.mp4", "a.mkv"])
def cropped(request, tmp_path_factory) -> tuple[Path, Path]:
    """A video, and the same with a crop in its container."""
    folder = tmp_path_factory.mktemp("crop")
    whole = make_video(folder / request.param, options=X264, frames=12)
    path = folder / f"cropped-{request.param}"
    change = with_clap if request.param == "a.mp4" else with_pixel_crop
    path.write_bytes(change(whole.read_bytes()))
    return whole, path


def test_size_and_pixels_are_those_of_the_part_shown(cropped: tuple[Path, Path]) -> None:
    whole, path = cropped
    info = probe(path)
    assert (info.height, info.width, info.sample_aspect) == (HEIGHT, WIDTH, 1.0)
    full, part = decode_clip(whole, frames=[0, 7]).frames, decode_clip(path, frames=[0, 7]).frames
    assert part.shape == (2, HEIGHT, WIDTH, 3)
    inner = full[:, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    # Colour next to the edge is interpolated from what is shown alone.
    np.testing.assert_array_equal(part[:, 2:-2, 2:-2], inner[:, 2:-2, 2:-2])


def test_views_are_placed_in_the_part_shown(cropped: tuple[Path, Path]) -> None:
    _, path = cropped
    decoded = decode_views(path, [View(Uniform(4), ShortSide(40, 32))])
    assert decoded.clips[0].frames.shape == (4, 32, 32, 3)
    assert (decoded.info.coded_height, decoded.info.coded_width) == (HEIGHT, WIDTH)
