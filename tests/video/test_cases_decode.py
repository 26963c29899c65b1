"""Videos and other files that fell short once, each with its right answer.

One case per row of the ``MANIFEST.csv`` of ``TUBELET_CASES`` (else of ``../shared/cases``) whose job is to
decode or to probe. ``right`` is ``key=value`` tokens, alternatives between `` | ``, then ``; `` and words.
"""

from __future__ import annotations

import http.server
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from _pytest.mark import ParameterSet
from support.cases import CASES, listed_cases
from support.video import EveryFrame, alone_equal, sequential
from tubelet.video import Content, Decoded, DecodeError, Limits, Sandbox, ShortSide, VideoInfo, View

HTTP_PORT = 18099
WHOLE = View(EveryFrame(), ShortSide())


@dataclass(frozen=True)
class Row:
    """One row of the manifest."""

    path: Path
    kind: str
    right: str

    @property
    def alternatives(self) -> list[dict[str, str]]:
        """The tokens of each alternative; words for people left out."""
        tokens = self.right.split(";")[0] if "; " in self.right else self.right
        return [dict(part.split("=", 1) for part in shlex.split(each)) for each in tokens.split(" | ")]


def rows() -> Iterator[Row]:
    for row in listed_cases():
        found = Row(CASES / row["path"], row["kind"], row["right"])
        mine = row["job"] in ("decode", "probe") or "by" in found.alternatives[0]
        parts = {tokens.get("part") for tokens in found.alternatives}
        if mine or "decode" in parts or found.kind in ("not-videos", "public-avif", "misleading-names"):
            yield found


@dataclass
class Outcome:
    """What came of one file; ``error`` where it is no video."""

    source: Path | bytes
    path: Path
    info: VideoInfo | None = None
    decoded: Decoded | None = None
    error: DecodeError | None = None

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        assert self.decoded is not None, self.error
        return self.decoded.clips[0].frames

    @property
    def shown(self) -> VideoInfo:
        assert self.info is not None, self.error
        return self.info


def outcome(box: Sandbox, source: Path | bytes, path: Path) -> Outcome:
    result = Outcome(source, path)
    try:
        result.info = box.probe(source)
        result.decoded = box.decode_views(source, [WHOLE])
        result.error = result.decoded.error
    except DecodeError as error:
        result.error = error
    return result


def check_frames(got: Outcome, value: str) -> None:
    count = len(sequential(got.path, got.shown.stream_index).frames) if value == "plain" else int(value)
    assert len(got.frames) == count
    if got.error is None:
        assert got.shown.frames in (None, count)


def check_duration(got: Outcome, value: str) -> None:
    assert got.decoded is not None
    assert got.decoded.info.duration_s == pytest.approx(float(value), abs=0.002)
    assert got.shown.duration_s in (None, pytest.approx(float(value), abs=0.002))


def check_like(got: Outcome, value: str) -> None:
    assert value == "plain"
    reference = sequential(got.path, got.shown.stream_index)
    for number, pixels in enumerate(got.frames):
        np.testing.assert_array_equal(pixels, reference.rgb(number), err_msg=f"frame {number}")


def check_alone(got: Outcome, value: str) -> None:
    assert value == "equal"
    assert not alone_equal(got.source, count=12)


def check_grey(got: Outcome, value: str) -> None:
    """The mean level of each frame rises, or is that of the ranges given, one frame per level.

    Video has 220 levels, so that some neighbours are equal, and codecs round.
    """
    levels = got.frames.mean((1, 2, 3))
    if value == "rises":
        assert (np.diff(levels) > -0.5).all()
        assert levels[-1] - levels[0] > len(levels) / 2
        return
    ranges = [tuple(map(int, part.split(".."))) for part in value.split(",")]
    expected = np.concatenate([np.arange(low, high + 1) for low, high in ranges])
    np.testing.assert_allclose(levels, expected, atol=4)


def check_size(got: Outcome, value: str) -> None:
    width, height = map(int, value.split("x"))
    assert got.frames.shape[1:3] == (height, width)
    assert (got.shown.width, got.shown.height) == (width, height)


def check_red(got: Outcome, value: str) -> None:
    edge = np.concatenate([got.frames[:, 0].reshape(-1, 3), got.frames[:, :, 0].reshape(-1, 3)])
    red = (edge[:, 0] > 180) & (edge[:, 1:] < 80).all(1)
    assert red.mean() > 0.9 if value == "yes" else red.mean() < 0.1


def check_result(got: Outcome, value: str) -> None:
    code = "ok" if got.error is None else "partial" if got.decoded is not None else "error"
    assert value == "unknown" or code in value.split(","), f"{code}: {got.error}"


def check_status(got: Outcome, value: str) -> None:
    """What ``index`` makes of it hangs on the name too; here on what the content was recognised as."""
    recognised = got.info.still if got.info is not None else isinstance(got.error.content, Content)
    assert recognised is ("not_video" in value), (got.info, got.error)


def check_requests(got: Outcome, value: str) -> None:
    assert len(hits) == int(value)


CHECKS: dict[str, Callable[[Outcome, str], None]] = {
    "frames": check_frames,
    "duration_s": check_duration,
    "like": check_like,
    "alone": check_alone,
    "grey": check_grey,
    "size": check_size,
    "red": check_red,
    "codec": lambda got, value: _equal(got.shown.codec, value),
    "stream": lambda got, value: _equal(got.shown.stream_index, int(value)),
    "result": check_result,
    "status": check_status,
    "requests": check_requests,
    "frames_over": lambda got, value: _less(int(value), len(got.frames)),
    "by": lambda got, value: None,
    "part": lambda got, value: None,
}
COSTS = ("deadline_s", "driver_mib", "child_mib")


def _equal(got: object, expected: object) -> None:
    assert got == expected


def _less(low: int, high: int) -> None:
    assert low < high


hits: list[str] = []


@contextmanager
def listening() -> Iterator[None]:
    """Counts the requests that a file makes FFmpeg send."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    hits.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", HTTP_PORT), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(Limits(deadline_s=90)) as sandbox:
        yield sandbox


@cache
def listed() -> list[Row]:
    return list(rows())


def cases() -> Iterator[ParameterSet]:
    """Measuring what a file may cost takes most of a minute: such rows run with the slow tests."""
    for row in listed():
        slow = any(key in row.alternatives[0] for key in COSTS)
        name = str(row.path.relative_to(CASES))
        yield pytest.param(row, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("row", cases())
def test_case(box: Sandbox, row: Row) -> None:
    first = row.alternatives[0]
    if any(key in first for key in COSTS):
        check_costs(row, first)
        return
    needs_server = "requests" in first
    with listening() if needs_server else _nothing():
        sources = {"path": row.path, "bytes": row.path.read_bytes()}
        for name in first.get("by", "path,bytes").split(","):
            got = outcome(box, sources[name], row.path)
            failures = [_failure(got, tokens) for tokens in row.alternatives]
            assert None in failures, f"by {name}: {failures}"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _failure(got: Outcome, tokens: dict[str, str]) -> str | None:
    try:
        for key, value in tokens.items():
            CHECKS[key](got, value)
    except AssertionError as error:
        return f"{tokens}: {' '.join(str(error).split())[:300]}"
    return None


def check_costs(row: Row, tokens: dict[str, str]) -> None:
    """Memory of this process and of the child, measured while a file is probed in a sandbox of its own."""
    limits = Limits(deadline_s=float(tokens["deadline_s"]), memory_bytes=int(tokens["child_mib"]) << 20)
    with Sandbox(limits) as own:
        own.probe(_small_video())
        assert own.pid is not None
        here, child = psutil.Process(), psutil.Process(own.pid)
        before, most, done = here.memory_info().rss, 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.02):
                try:
                    most = max(most, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin_s = time.monotonic()
        try:
            got = Outcome(row.path, row.path)
            try:
                got.info = own.probe(row.path)
            except DecodeError as error:
                got.error = error
        finally:
            took_s = time.monotonic() - begin_s
            done.set()
            watcher.join()
        grown = here.memory_info().rss - before
    assert took_s <= float(tokens["deadline_s"])
    assert grown <= int(tokens["driver_mib"]) << 20, f"{grown >> 20} MiB in this process"
    assert most <= int(tokens["child_mib"]) << 20
    assert ("ok" if got.error is None else "error") in tokens["result"].split(",")


def _small_video() -> bytes:
    """A GIF of one pixel: starts the child's decoder without costing memory."""
    return bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")
