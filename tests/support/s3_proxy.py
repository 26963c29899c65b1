"""A proxy before a real S3 server that fails like a store that is away, broken or incomplete.

Requests are signed anew on their way, so that the proxy may leave headers out.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tubelet.storage.local_s3 import LocalS3

_CONDITIONS = ("if-match", "if-none-match")
_NOT_PASSED_ON = {"authorization", "connection", "expect", "host", "transfer-encoding"}
_NOT_PASSED_ON |= {"x-amz-date", "x-amz-content-sha256", "x-amz-security-token"}


class Mode(StrEnum):
    """What the proxy does to the requests it picks."""

    EXPIRED = "400 ExpiredToken"
    DENIED = "403 AccessDenied"
    OVERLOADED = "503 SlowDown"
    SHORT = "half of the body, with a Content-Length that fits it"
    LOST = "503 SlowDown, once the store has done it"
    CUT = "half of the body, then the connection is closed"
    SLOW = "the body comes in eight pieces, with pauses"
    SHIFTED = "another range than the one asked for"
    NO_RANGE = "the whole object with status 200, whatever range was asked for"
    NO_CONDITIONS = "501 NotImplemented to a conditional put"
    IGNORED_CONDITIONS = "conditions are left out"
    WEAK_ETAGS = "etags are weak, so that no If-Match ever holds"


@dataclass
class Fault:
    """Which requests are hit, and how.

    Attributes:
        mode: what is done to them.
        after: so many requests pass before.
        times: so many are hit, then all pass again; None: all.
        match: only requests whose path holds this.
        methods: only requests of these; none: of all.
    """

    mode: Mode
    after: int = 0
    times: int | None = None
    match: str = ""
    hits: int = 0
    methods: tuple[str, ...] = ()

    def picks(self, path: str, method: str) -> bool:
        """Whether a request is hit; counts."""
        if self.match not in path or (self.methods and method not in self.methods):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


@dataclass
class S3Proxy:
    """The proxy of one server; ``fault`` and ``delay_s``, of every answer, may be set while it runs."""

    server: LocalS3
    fault: Fault | None = None
    delay_s: float = 0.0
    port: int = 0
    requests: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        """For ``AWS_ENDPOINT_URL``."""
        return f"http://127.0.0.1:{self.port}"

    def mode_for(self, method: str, path: str) -> Mode | None:
        """What to do to a request."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            fault = self.fault
            return fault.mode if fault is not None and fault.picks(path, method) else None


@contextmanager
def s3_proxy(server: LocalS3) -> Iterator[S3Proxy]:
    """Run a proxy before ``server``."""
    proxy = S3Proxy(server)
    upstream = urllib3.PoolManager(maxsize=16, retries=False)

    class Handler(_Handler):
        pass

    Handler.proxy, Handler.upstream = proxy, upstream
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    proxy.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy
    upstream: urllib3.PoolManager

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items() if k.lower() not in _NOT_PASSED_ON}
        mode = self.proxy.mode_for(self.command, self.path)
        refusal = self._refusal(mode, headers)
        if refusal is not None:
            self._refuse(*refusal)
            return
        if mode is Mode.IGNORED_CONDITIONS:
            headers = {k: v for k, v in headers.items() if k not in _CONDITIONS}
        if mode is Mode.NO_RANGE:
            headers.pop("range", None)
        if mode is Mode.SHIFTED and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))):
            headers["range"] = f"bytes={int(found[1]) + 1}-{int(found[2]) + 1}"
        time.sleep(self.proxy.delay_s)
        answer = self._send_on(body, headers)
        if mode is Mode.LOST:
            self._refuse(503, "SlowDown")
            return
        data, answered = answer.data, {k: v for k, v in answer.headers.items() if k.lower() != "date"}
        if mode is Mode.WEAK_ETAGS:
            answered = {k: f"W/{v}" if k.lower() == "etag" else v for k, v in answered.items()}
            data = re.sub(rb"<ETag>(&#34;|&quot;|\")", rb"<ETag>W/\1", data)
        self._answer(answer.status, answered, data, mode)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _refusal(self, mode: Mode | None, headers: dict[str, str]) -> tuple[int, str] | None:
        conditional = any(name in headers for name in _CONDITIONS)
        if mode in (Mode.EXPIRED, Mode.DENIED, Mode.OVERLOADED):
            status, code = str(mode).split()
            return int(status), code
        if mode is Mode.NO_CONDITIONS and conditional and self.command == "PUT":
            return 501, "NotImplemented"
        if mode is Mode.WEAK_ETAGS and "if-match" in headers:
            return 412, "PreconditionFailed"
        return None

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
        self._answer(status, {"Content-Type": "application/xml"}, text.encode(), None)

    def _send_on(self, body: bytes, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        server = self.proxy.server
        request = AWSRequest(self.command, server.endpoint + self.path, headers, data=body)
        keys = Credentials(server.access_key, server.secret_key)
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
        return self.upstream.request(
            self.command,
            server.endpoint + self.path,
            headers=dict(request.headers.items()),
            body=body,
            redirect=False,
            decode_content=False,
        )

    def _answer(self, status: int, headers: dict[str, str], data: bytes, mode: Mode | None) -> None:
        is_object = self.command == "GET" and "list-type" not in self.path
        sent = data[: len(data) // 2] if is_object and mode in (Mode.SHORT, Mode.CUT) else data
        length = len(data) if is_object and mode is Mode.CUT else len(sent)
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server"):
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", headers.get("Content-Length", "0"))
        elif status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        pieces = 8 if mode is Mode.SLOW and is_object else 1
        step = max(1, -(-len(sent) // pieces))
        with suppress(OSError):  # the client went away
            for start in range(0, len(sent), step) if self.command != "HEAD" else ():
                self.wfile.write(sent[start : start + step])
                self.wfile.flush()
                time.sleep(0.05 if pieces > 1 else 0)
        if length != len(sent):
            self.close_connection = True
