"""The tracker: what a job holds to log one run."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from tubelet.config import UserError
from tubelet.redaction import redacted
from tubelet.storage.errors import local_writes
from tubelet.tracking import registry
from tubelet.tracking.names import user
from tubelet.tracking.spool import (
    REFUSED,
    Spool,
    first_line,
    now_ms,
    reclaim,
    remove_sent,
    remove_spool,
)
from tubelet.tracking.spool_folder import spool_folder
from tubelet.tracking.store import RunStore
from tubelet.tracking.system import SystemSampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Run by its path, so that it stays a bare interpreter until it is needed.
_WATCHDOG = Path(__file__).with_name("watchdog.py")

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """One MLflow run. Make it with :meth:`start`; every method returns at once unless it says otherwise."""

    def __init__(self, store: RunStore, spool: Spool, watchdog: subprocess.Popen[str] | None) -> None:
        self._store, self._spool, self._watchdog = store, spool, watchdog
        self._files = 0
        self._tables: list[dict[str, str]] = []
        self._finished = False
        self._model_id: str | None = None
        self._sampler: SystemSampler | None = None

    @classmethod
    def start(
        cls,
        uri: str | None,
        experiment: str,
        run_name: str,
        *,
        run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        description: str = "",
        system_metrics: bool = True,
        wait_s: float = 30.0,
    ) -> Tracker:
        """Begin a run, or go on with ``run_id`` (as :attr:`run_id` gave it) after a crash.

        ``description``: what MLflow shows of the run, in Markdown.

        Waits up to ``wait_s`` for the first contact; a server that does not answer is no error, the records
        are kept and sent when it does.

        Raises:
            UserError: ``uri`` is not one that MLflow knows, its database is damaged or of another MLflow, the
                experiment or the run is deleted, or the folder for records is another user's.
        """
        uri = registry.check_uri(uri)
        folder, state = spool_folder(run_id)
        key = str(state.get("key") or run_id or uuid4().hex)
        store = RunStore(
            uri,
            experiment,
            run_name,
            key=key,
            owner=uuid4().hex,
            run_id=state.get("run_id") or run_id,
            tags={
                "mlflow.source.name": "tubelet",
                "mlflow.user": user(),
                **registry.code_tags(),
                **_strings({"mlflow.note.content": description or None, **(tags or {})}),
            },
        )
        with local_writes(folder):
            reclaim(folder)
            store.on_open = lambda: _write_state(folder, store)
            store.on_open()
            spool = Spool(folder, store.send, store.healthy)
        tracker = cls(store, spool, _start_watchdog(folder, store.owner))
        try:
            tracker._connect(wait_s)
        except UserError:
            tracker._withdraw(keep=bool(state))
            raise
        spool.start()
        tracker.set_tags(_strings(tags or {}))
        tracker.log_params(params or {})
        if system_metrics:
            tracker._sampler = SystemSampler(tracker._put_system)
            tracker._sampler.start()
        atexit.register(tracker._at_exit)
        return tracker

    @staticmethod
    def check(uri: str | None, experiment: str, wait_s: float = 15.0) -> None:
        """Look whether :meth:`start` would be refused, before anything else is started; makes no run.

        A server that does not answer within ``wait_s`` is no error. A database file that is not there yet is
        left to be made by :meth:`start`.

        Raises:
            UserError: as :meth:`start`.
        """
        found = registry.check_uri(uri)
        if found.startswith("sqlite:") and not Path(found.removeprefix("sqlite:///")).exists():
            return
        store = RunStore(found, experiment, "", key="", owner="")
        refusals: list[UserError] = []
        _attempt(store.check, refusals, wait_s)
        if refusals:
            raise refusals[0]

    @property
    def on(self) -> bool:
        """Whether anything that is logged is kept."""
        return True

    @property
    def run_id(self) -> str:
        """What to store for a resume: MLflow's run id or, before first contact, a key that leads to it."""
        return self._store.run_id or self._store.key

    @property
    def uri(self) -> str:
        """The tracking server's URI, absolute."""
        return self._store.uri

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log ``values`` at ``step``; a step that this run already has of a metric is skipped."""
        clean = {metric_name(name): float(value) for name, value in values.items()}
        if clean:
            record = {"kind": "metrics", "values": clean, "step": int(step), "time_ms": now_ms()}
            self._spool.put({**record, "model_id": self._model_id} if self._model_id else record)

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log parameters; one that differs from what the run has becomes a tag ``changed.<name>``."""
        if values:
            self._spool.put({"kind": "params", "values": _strings(values)})

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Set tags, replacing those of the same names."""
        if values:
            self._spool.put({"kind": "tags", "values": _strings(values)})

    def log_text(self, text: str, name: str) -> None:
        """Store ``text`` as the artifact ``name`` (folders with ``/``)."""
        self._log_artifact(name, lambda path: path.write_text(text, "utf-8"))

    def log_table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Store rows of the same columns as the artifact ``name`` (.json), which MLflow shows as a table."""
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
        self.log_text(json.dumps(table), name)
        self._tables.append({"path": name, "type": "table"})
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def log_file(self, source: str | Path, name: str | None = None) -> None:
        """Store a copy of a local file as the artifact ``name`` (default: its own name)."""
        self._log_artifact(name or Path(source).name, lambda path: shutil.copyfile(source, path))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a matplotlib figure; the suffix of ``name`` tells the format."""
        self._log_artifact(name, lambda path: figure.savefig(path, dpi=120, bbox_inches="tight"))

    def log_model(
        self,
        bundle_dir: str | Path,
        name: str,
        *,
        alias: str | None = None,
        step: int = 0,
        card: str = "",
        wait_s: float = 120,
    ) -> str | None:
        """Log the model folder ``bundle_dir`` from code and register it as the next version of ``name``.

        ``card``: what people should know of the version, in Markdown; whole with the run, and shortened where
        MLflow's databases hold no more of it.

        Waits for the server up to ``wait_s``. Returns the version, or None (with a warning) where the
        server stayed away or has no registry: the model folder itself is not touched.
        """
        card = redacted(card)
        if card:
            self.log_text(card, "model_card.md")
        try:
            self.flush(wait_s)
            run_id = self._store.open()
            return registry.log_model(
                self.uri, run_id, Path(bundle_dir), name, alias=alias, step=step, card=card
            )
        except Exception as error:
            logger.warning(f"the model was not registered in MLflow: {first_line(error)}")
            return None

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point ``alias`` of the registered model ``name`` at ``version``; a failure is said, not raised."""
        try:
            self._store.client.set_registered_model_alias(name, alias, version)
        except Exception as error:
            logger.warning(f"alias {alias} was not set in MLflow: {first_line(error)}")

    def describe_version(self, link: registry.ModelLink, title: str, text: str) -> None:
        """Add what was found out about a registered version to its description; a failure is said only.

        Args:
            link: which version; nothing happens where it is not registered.
            title: the heading above ``text``; what stood under it before is replaced.
            text: Markdown.
        """
        try:
            registry.describe_version(self.uri, link, title, redacted(text))
        except Exception as error:
            logger.warning(f"the model's description was not changed in MLflow: {first_line(error)}")

    def link_model(self, link: registry.ModelLink) -> None:
        """Say which model this run is about, before any metric of it is logged.

        Tags always; where the model is of this server, also MLflow's own links: an input of the run, metrics
        on the model's page, and the run that trained it as the parent.
        """
        self.set_tags(link.tags())
        self._model_id = link.model_id
        self._spool.put({"kind": "link", "model_id": link.model_id, "run_id": link.run_id})

    def log_dataset(self, source: str, digest: str, context: str, rows: int) -> None:
        """Say which data this run reads, as MLflow shows the inputs of a run.

        Args:
            source: URI of the manifest.
            digest: of what of it is read (see ``corpus.fingerprint``).
            context: what for: ``train``, ``validation``, ``test``, ``label``.
            rows: how many videos that is.
        """
        record = {"source": redacted(source), "digest": digest, "context": context, "rows": rows}
        self._spool.put({"kind": "dataset", **record})

    def flush(self, timeout_s: float = 60) -> bool:
        """Wait until everything logged so far was sent; False after ``timeout_s``."""
        return self._spool.wait_empty(timeout_s)

    def finish(self, status: Status = "FINISHED", wait_s: float = 60) -> None:
        """End the run with ``status``. What cannot be sent within ``wait_s`` is left to the watchdog."""
        if self._finished:
            return
        self._finished = True
        atexit.unregister(self._at_exit)
        if self._sampler:
            self._sampler.stop()
        self._spool.put({"kind": "status", "status": status, "time_ms": now_ms()})
        sent = self._spool.wait_empty(wait_s)
        self._spool.close()
        self._end_watchdog("done" if sent else "")
        left = self._spool.folder
        if self._spool.refused:
            kept = left / REFUSED
            logger.warning(f"{self._spool.refused} records that MLflow refused are kept in {kept}")
        if sent:
            if self._owns(left):
                remove_sent(left)
        else:
            logger.warning(f"MLflow is away: a background process sends {left}")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "FAILED")

    def _connect(self, wait_s: float) -> None:
        """Try once, in the background; a failure here is the spool's business, unless waiting mends nothing.

        Raises:
            UserError: a person has to do something.
        """
        refusals: list[UserError] = []
        _attempt(self._store.open, refusals, wait_s)
        if refusals:
            raise refusals[0]

    def _withdraw(self, *, keep: bool) -> None:
        """Undo a start that was refused; ``keep`` what an earlier process left."""
        self._finished = True
        self._spool.close()
        self._end_watchdog("done")
        if not keep:
            remove_spool(self._spool.folder)

    def _put_system(self, values: Mapping[str, float]) -> None:
        self._spool.put({"kind": "system", "values": dict(values), "time_ms": now_ms()})

    def _log_artifact(self, name: str, write: Callable[[Path], object]) -> None:
        self._files += 1
        path = self._spool.folder / "files" / f"{os.getpid()}-{self._files}" / Path(name).name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:  # a full disk must not end the job
            logger.warning(f"{name} was not logged: {first_line(error)}")
            return
        self._spool.put({"kind": "file", "path": str(path), "folder": str(Path(name).parent).strip(".")})

    def _owns(self, folder: Path) -> bool:
        """Whether the spool is still this process's; one that resumes the run takes it over."""
        with suppress(ValueError, OSError):
            state = json.loads((folder / "state.json").read_text("utf-8"))
            return bool(state["owner"] == self._store.owner)
        return True

    def _end_watchdog(self, word: str) -> None:
        """Close the watchdog's pipe: with ``done`` it just ends, without a word it takes over."""
        if self._watchdog and self._watchdog.stdin:
            with suppress(OSError):
                self._watchdog.stdin.write(word)
                self._watchdog.stdin.close()
            if word:
                with suppress(subprocess.TimeoutExpired):
                    self._watchdog.wait(5)

    def _at_exit(self) -> None:
        self.finish("FAILED", wait_s=10)


def _attempt(connect: Callable[[], object], refusals: list[UserError], wait_s: float) -> None:
    """Call ``connect`` in the background, for up to ``wait_s``; what a person has to mend is a refusal."""

    def attempt() -> None:
        try:
            connect()
        except UserError as error:
            refusals.append(error)
        except Exception:
            logger.debug("MLflow does not answer yet", exc_info=True)

    thread = threading.Thread(target=attempt, name="mlflow-connect", daemon=True)
    thread.start()
    thread.join(wait_s)


def metric_name(name: str) -> str:
    """``name`` in the letters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {str(k): redacted(str(v)) for k, v in values.items() if v is not None}


def _write_state(folder: Path, store: RunStore) -> None:
    names = ("uri", "experiment", "run_name", "key", "owner", "run_id", "tags")
    path = folder / "state.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({name: getattr(store, name) for name in names}), "utf-8")
    temporary.replace(path)


def _start_watchdog(folder: Path, owner: str) -> subprocess.Popen[str] | None:
    paths = json.dumps([os.path.abspath(path) for path in sys.path])
    with suppress(OSError):
        return subprocess.Popen(
            # -P: neither the watchdog's own folder nor the working folder is on its path.
            [sys.executable, "-P", str(_WATCHDOG), str(folder), owner, paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C at the driver's terminal must not reach it
        )
    return None
