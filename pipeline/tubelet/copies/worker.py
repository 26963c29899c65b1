"""What runs in the actors: requests become copies, and rows that say what these are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from tubelet import storage
from tubelet.clips import Batch
from tubelet.clips.decoder import source_of, window_of
from tubelet.config import UserError
from tubelet.copies.table import SCHEMA, copy_name, described
from tubelet.inference.cells import cells_of
from tubelet.inference.schema import table_of
from tubelet.inference.workers import DecodeJob, Reader
from tubelet.storage import ObjectInfo, with_retries
from tubelet.storage.opener import ObjectOpener
from tubelet.video import (
    Copied,
    CopySpec,
    DecodeError,
    DecoderStartError,
    ErrorCode,
    Sandbox,
    Status,
    VideoInfo,
)
from tubelet.video.errors import ClipError

_COSTS = (
    pa.field("request", pa.int64()),
    pa.field("decode_s", pa.float64()),
    pa.field("predict_s", pa.float64()),  # no model answers
)


@dataclass(frozen=True)
class CopyJob:
    """What a worker makes of each request.

    Attributes:
        spec: what copies are like.
        folder: where they go.
    """

    spec: CopySpec
    folder: str

    def __call__(self) -> Sequence[CopyJob]:
        """Itself, as a job of one model."""
        return [self]


class CopyWorker:
    """A callable for ``map_batches`` in an actor; owns one killable decode process."""

    def __init__(
        self,
        decode: DecodeJob,
        read: Reader,
        jobs: Callable[[], Sequence[CopyJob]],
        threads: int,
    ) -> None:
        (self._job,) = jobs()
        self._read, self._limits = read, decode.limits
        self._source, self._options = decode.storage, decode.storage.for_writing()
        self._sandbox = Sandbox(decode.limits)
        self._made = described(self._job.spec)

    def __call__(self, task: pa.Table) -> Iterator[Batch]:
        """The requests of one task to tables of rows."""
        for requests in self._read(task):
            for request in requests.to_pylist():
                yield cells_of([table_of([self.row(request)], pa.schema([*SCHEMA, *_COSTS]))])

    def row(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The row of one request: a copy, or why there is none.

        Raises:
            DecoderStartError: this machine cannot start a decoder, which is no video's error.
        """
        started_s = time.monotonic()
        row = {name: request[name] for name in ("request", "key", "window", "uri", "etag")}
        row |= {"status": Status.OK.value, "attempts": 0}
        try:
            row |= self._copy(request)
        except DecodeError as error:
            row |= _failed(error.code, error.message)
        except DecoderStartError:
            raise
        except (ClipError, UserError, OSError) as error:
            # What a store says of a copy that it does not take is no verdict on the video.
            code = ErrorCode.NO_FRAMES if isinstance(error, ClipError) else ErrorCode.IO_ERROR
            row |= _failed(code, str(error))
        except Exception as error:  # a fault of ours in one row must not end the job
            row |= _failed(ErrorCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
        return row | {"decode_s": time.monotonic() - started_s, "predict_s": 0.0}

    def close(self) -> None:
        """End the decode process."""
        self._sandbox.close()

    def _copy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        window_s = window_of(request)
        part = "" if window_s is None else f"{window_s[0]:.6f}-{window_s[1]:.6f}"
        name = copy_name(request["key"], request["window"], part, request["etag"], self._made)
        uri = storage.join(self._job.folder, name)
        found = with_retries(lambda: storage.stat(uri, self._options))
        if found is not None:  # of a run that was stopped before its row was published
            return _columns(found, self._sandbox.probe(self._opener(found)))
        copied = self._transcoded(request, window_s)
        if copied.error is None:
            return _columns(self._publish(uri, copied), copied.info)
        found = self._publish(uri.removesuffix(".mp4") + "-partial.mp4", copied)
        partial = {"error_code": copied.error.code.value, "error": copied.error.message}
        return _columns(found, copied.info) | partial

    def _opener(self, copy: ObjectInfo) -> ObjectOpener:
        return ObjectOpener(copy.uri, copy.size_bytes, copy.etag, self._options)

    def _transcoded(self, request: Mapping[str, Any], window_s: tuple[float, float] | None) -> Copied:
        try:
            source = source_of(request, self._source)
        except UserError as error:
            raise DecodeError(ErrorCode.BAD_URI, str(error)) from error
        return self._sandbox.transcode(source, self._job.spec, window_s=window_s)

    def _publish(self, uri: str, copied: Copied) -> ObjectInfo:
        """Put the copy in its place unless one is there: a row names the etag of what readers get."""
        with closing(copied.file) as file:
            data = file.read(self._limits.memory_bytes + 1)
        if len(data) > self._limits.memory_bytes:
            raise DecodeError(ErrorCode.TOO_LARGE, f"the copy is over {len(data) - 1} bytes (--memory)")
        with_retries(lambda: storage.put_if_absent(uri, data, self._options))
        found = with_retries(lambda: storage.stat(uri, self._options))
        if found is None:
            raise DecodeError(ErrorCode.IO_ERROR, f"the copy {uri} is gone")
        return found


def _columns(copy: ObjectInfo, info: VideoInfo) -> dict[str, Any]:
    described = {name: value for name, value in asdict(info).items() if name in SCHEMA.names}
    where = {"copy_uri": copy.uri, "copy_etag": copy.etag, "copy_size": copy.size_bytes}
    return {**described, **where}


def _failed(code: str, message: str) -> dict[str, Any]:
    text = " ".join(str(message).encode("utf-8", "replace").decode().split())[:500]
    return {"status": Status.ERROR.value, "error_code": str(code), "error": text}
