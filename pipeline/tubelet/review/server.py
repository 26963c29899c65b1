"""The page served on this machine: videos play from the store, corrections are kept as they are made.

Only who has the token sees anything; it comes with the address that is printed, and stays in a cookie.
"""

from __future__ import annotations

import hmac
import json
import logging
import mimetypes
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import flask
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wsgi import wrap_file

from tubelet import storage
from tubelet.config import UserError
from tubelet.review.config import ReviewConfig, ServeConfig
from tubelet.review.corrections import correction_of, corrections_csv
from tubelet.review.page import PageMaker
from tubelet.review.whole import WholeOutput
from tubelet.storage.opener import ObjectOpener

_COOKIE = "tubelet-review"
_MAX_BODY_BYTES = 64_000_000

_log = logging.getLogger(__name__)


class _Said(TypedDict, total=False):
    action: Literal["accept", "relabel", "reject"] | None
    labels: dict[str, str]
    note: str
    by: str
    at: str


class _Change(TypedDict):
    key: str
    window: int
    said: _Said | None


_CHANGES = TypeAdapter(list[_Change])


class CorrectionsKeeper:
    """What was said of the page's rows, kept in two files: for ``index`` (CSV), and as it was said (JSON).

    Several people may correct at once: a change replaces what was said of its rows only.
    """

    def __init__(self, uri: str, rows: list[dict[str, Any]], options: storage.StorageOptions) -> None:
        self.uri, self.options, self._kept = uri, options, options.for_writing()
        self._rows = {(row["key"], row["window"]): row for row in rows}
        self._heads = list(dict.fromkeys(["label", *(head for row in rows for head in row["heads"])]))
        self._lock = threading.Lock()
        self._said: dict[tuple[str, int], _Said] = {}
        try:
            kept = storage.read_bytes(self._as_said, self._kept)
        except FileNotFoundError:
            if storage.stat(uri, self._kept) is not None:
                raise UserError(f"{uri} exists and was not made here: choose another --corrections") from None
            return
        for change in _CHANGES.validate_json(kept):
            if change["said"] is not None:
                self._said[change["key"], change["window"]] = change["said"]

    @property
    def _as_said(self) -> str:
        return self.uri.removesuffix(".csv") + ".json"

    def know(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take corrections of these rows, too."""
        with self._lock:
            self._rows |= {(row["key"], row["window"]): row for row in rows}

    def unknown(self) -> list[tuple[str, int]]:
        """Rows of which something was said before and that are not known."""
        with self._lock:
            return [place for place in self._said if place not in self._rows]

    def changes(self) -> list[_Change]:
        """All that was said."""
        with self._lock:
            return self._all()

    def _all(self) -> list[_Change]:
        return [{"key": key, "window": window, "said": said} for (key, window), said in self._said.items()]

    def apply(self, changes: list[_Change]) -> None:
        """Keep what is said now; both files are written before this returns."""
        with self._lock:
            for change in changes:
                place = change["key"], change["window"]
                if place not in self._rows:
                    continue
                if change["said"] is None:
                    self._said.pop(place, None)
                else:
                    self._said[place] = change["said"]
            found = [correction_of(self._rows[p], s) for p, s in self._said.items() if p in self._rows]
            text = corrections_csv([one for one in found if one is not None], self._heads)
            storage.write_bytes(self._as_said, json.dumps(self._all()).encode(), self._kept)
            storage.write_bytes(self.uri, text.encode(), self._kept)


def make_app(
    folder: Path, rows: list[dict[str, Any]], keeper: CorrectionsKeeper, token: str, whole: WholeOutput
) -> flask.Flask:
    """The page in ``folder``, its rows' videos and its corrections, for those who have the token."""
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BODY_BYTES
    videos = {(row["key"], row["window"]): row["uri"] for row in rows}

    @app.before_request
    def check_token() -> flask.typing.ResponseReturnValue | None:
        given = flask.request.args.get("token")
        if given is not None and hmac.compare_digest(given.encode(), token.encode()):
            # Out of the address bar, and so out of links that are shared.
            answer = flask.redirect(flask.request.path)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return answer
        if not hmac.compare_digest(flask.request.cookies.get(_COOKIE, "").encode(), token.encode()):
            return "open the address that `tubelet review --serve` printed, with its token\n", 403
        return None

    @app.after_request
    def harden(answer: flask.Response) -> flask.Response:
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        return answer

    @app.get("/")
    def page() -> flask.Response:
        return flask.send_from_directory(folder, "page.html", max_age=0)

    @app.get("/page_files/<name>")
    def sheet(name: str) -> flask.Response:
        return flask.send_from_directory(folder / "page_files", name, max_age=3600)

    @app.get("/video/<key>/<int:window>")
    def video(key: str, window: int) -> flask.Response:
        uri = videos.get((key, window))
        if uri is None:
            flask.abort(404)
        try:
            file = ObjectOpener(uri, options=keeper.options)()
            return _ranged(file, mimetypes.guess_type(uri)[0])
        except (FileNotFoundError, UserError, storage.StoreUnavailableError) as error:
            flask.abort(404, str(error))

    @app.get("/alike/<key>/<int:window>")
    def alike(key: str, window: int) -> flask.Response:
        """Among all rows of the output: places of those that the page has, and what it has not, whole."""
        places = whole.alike((key, window))
        more = whole.rows(place for place in places if place not in videos)
        keeper.know(more)
        videos.update({(row["key"], row["window"]): row["uri"] for row in more})
        return flask.jsonify({"places": places, "more": more})

    @app.get("/corrections")
    def said() -> flask.Response:
        return flask.jsonify(keeper.changes())

    @app.post("/corrections")
    def say() -> flask.typing.ResponseReturnValue:
        try:
            changes = _CHANGES.validate_json(flask.request.get_data())
        except ValidationError as error:
            return f"no corrections: {error.errors()[0]['msg']}", 400
        try:
            keeper.apply(changes)
        except (OSError, UserError) as error:
            _log.warning("corrections could not be kept at %s", keeper.uri, exc_info=True)
            return str(error), 503
        return "", 204

    @app.errorhandler(HTTPException)
    def plain(error: HTTPException) -> flask.typing.ResponseReturnValue:
        return f"{error.description}\n", error.code or 500, {"Content-Type": "text/plain"}

    return app


def _ranged(file: BinaryIO, kind: str | None) -> flask.Response:
    """The file, or the range of it that a player asks for; never as anything but a video."""
    size = file.seek(0, 2)
    file.seek(0)
    mimetype = kind if kind and kind.startswith("video/") else "application/octet-stream"
    answer = flask.Response(
        wrap_file(flask.request.environ, file, 256 * 1024), mimetype=mimetype, direct_passthrough=True
    )
    answer.content_length = size
    answer.make_conditional(flask.request.environ, accept_ranges=True, complete_length=size)
    return answer


class _Quiet(WSGIRequestHandler):
    """Requests are no news."""

    def log_request(self, *_: object) -> None:
        pass


@contextmanager
def serving(config: ReviewConfig, serve: ServeConfig) -> Iterator[tuple[BaseWSGIServer, str]]:
    """The page made and a server for it, and its address with the token; ``serve_forever`` runs it.

    Raises:
        UserError: no predictions, an address that cannot be had, a corrections file of something else.
    """
    kept = serve.corrections or storage.join(config.predictions, "_review/corrections.csv")
    with tempfile.TemporaryDirectory(prefix="tubelet-review-") as name:
        maker = PageMaker(config, str(Path(name) / "page.html"), served=True)
        maker.make()
        keeper = CorrectionsKeeper(storage.normalise_uri(kept), maker.rows, config.storage_options)
        whole = WholeOutput(maker)
        if unknown := keeper.unknown():  # said of rows that another page showed: they stay in the file
            keeper.know(whole.rows(unknown))
        token = secrets.token_urlsafe(24)
        app = make_app(Path(name), maker.rows, keeper, token, whole)
        try:
            server = make_server(serve.host, serve.port, app, threaded=True, request_handler=_Quiet)
        except (OSError, SystemExit) as error:
            raise UserError(
                f"{serve.host}:{serve.port} cannot be served at: choose another --port or --host"
            ) from error
        server.daemon_threads = True  # type: ignore[attr-defined]
        try:
            host = "127.0.0.1" if serve.host == "0.0.0.0" else serve.host  # noqa: S104
            yield server, f"http://{f'[{host}]' if ':' in host else host}:{server.port}/?token={token}"
        finally:
            server.server_close()
