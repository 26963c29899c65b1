"""As much of Google's storage server as the clients here ask for, with the preconditions of its JSON API.

There is no such server to install: the emulators on the package index know no preconditions.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c


@dataclass
class Bucket:
    """What the server holds.

    Attributes:
        honours: whether it looks at preconditions.
        loses: it loses one page of so many of its listings; 0: none.
    """

    honours: bool = True
    objects: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    sessions: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    loses: int = 0
    listings: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def put(self, name: str, data: bytes, wanted: str | None) -> bool:
        """Write where the object's generation is ``wanted`` (None: any; '0': there is none)."""
        with self.lock:
            now = self.objects.get(name, (0, b""))[0]
            if self.honours and wanted is not None and int(wanted) != now:
                return False
            self.objects[name] = (1000 + next(self.numbers), data)
            return True

    def describe(self, name: str) -> dict[str, Any]:
        """The resource of an object."""
        generation, data = self.objects[name]
        checksum = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        moment = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": "b",
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(data)),
            "crc32c": checksum,
            "updated": moment,
            "timeCreated": moment,
        }

    def listing(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of the names below a prefix, as far as the next delimiter, from a name on."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        begin, most = (
            query.get("pageToken") or query.get("startOffset", ""),
            int(query.get("maxResults", 1000)),
        )
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        answer: dict[str, Any] = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
        for name in sorted(self.objects):
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            folder = prefix + head + found if found else ""
            if not name.startswith(prefix) or name < begin or (folder and folder in prefixes):
                continue
            if len(items) + len(prefixes) == most:
                return answer | {"nextPageToken": name}
            if folder:
                prefixes.append(folder)
            else:
                items.append(self.describe(name))
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _parsed(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        name = unquote(re.sub(r"^(/upload|/download)?/storage/v1/b/b(/o/?)?", "", parts.path))
        return name, {key: values[0] for key, values in parse_qs(parts.query).items()}

    def _answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _put(self, name: str, data: bytes, wanted: str | None) -> None:
        done = self.bucket.put(name, data, wanted)
        error = {"error": {"code": 412, "message": "conditionNotMet"}}
        self._answer(200 if done else 412, self.bucket.describe(name) if done else error)

    def do_GET(self) -> None:
        name, query = self._parsed()
        if not name:
            with self.bucket.lock:
                self.bucket.listings += 1
                lost = self.bucket.listings % self.bucket.loses == 0 if self.bucket.loses else False
                page = self.bucket.listing(query)
            if lost:
                self._answer(503, {"error": {"code": 503, "message": "try again"}})
            else:
                self._answer(200, page)
        elif name not in self.bucket.objects:
            self._answer(404, {"error": {"code": 404, "message": "no such object"}})
        elif query.get("alt") == "media":
            generation, data = self.bucket.objects[name]
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            first, last = (int(found[1]), int(found[2] or len(data) - 1)) if found else (0, len(data) - 1)
            part = {"Content_Range": f"bytes {first}-{last}/{len(data)}"} if found else {}
            headers = {"x-goog-generation": str(generation), **part}
            self._answer(206 if found else 200, data[first : last + 1], **headers)
        else:
            self._answer(200, self.bucket.describe(name))

    def do_POST(self) -> None:
        name, query = self._parsed()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if query["uploadType"] == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            session = str(next(self.bucket.numbers))
            self.bucket.sessions[session] = (name, query.get("ifGenerationMatch"))
            host = self.headers["Host"]
            where = f"http://{host}/upload/storage/v1/b/b/o?uploadType=resumable&upload_id={session}"
            self._answer(200, Location=where)
            return
        border = (self.headers.get_param("boundary", header="content-type") or "").strip("'\"").encode()
        _, about, content, _ = body.split(b"--" + border)
        name = json.loads(about.partition(b"\r\n\r\n")[2])["name"]
        self._put(
            name, content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"), query.get("ifGenerationMatch")
        )

    def do_PUT(self) -> None:
        name, wanted = self.bucket.sessions[self._parsed()[1]["upload_id"]]
        self._put(name, self.rfile.read(int(self.headers["Content-Length"] or 0)), wanted)

    def do_DELETE(self) -> None:
        with self.bucket.lock:
            there = self.bucket.objects.pop(self._parsed()[0], None)
        self._answer(204 if there else 404)


def _serve(honours: bool, loses: int, objects: int) -> None:
    bucket = Bucket(honours, loses=loses)
    for number in range(objects):
        bucket.put(f"many/{'ab'[number % 2]}/video-{number // 2:05d}.mp4", b"x" * (number % 7), None)
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


@contextmanager
def gcs_server(*, honours: bool = True, loses: int = 0, objects: int = 0) -> Iterator[str]:
    """A server with the bucket ``b``; its URL. A process of its own: PyArrow asks while it holds the GIL.

    Args:
        honours: it looks at preconditions.
        loses: one listing of so many gets no answer but 503.
        objects: so many lie in the folders ``many/a`` and ``many/b``.
    """
    command = [sys.executable, __file__, str(int(honours)), str(loses), str(objects)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    _serve(sys.argv[1] == "1", int(sys.argv[2]), int(sys.argv[3]))
