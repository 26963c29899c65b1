"""One MLflow run behind calls that may fail and be repeated without harm."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tubelet.config import UserError
from tubelet.tracking.database import explained, shown
from tubelet.tracking.spool import Record, RefusedError

logger = logging.getLogger(__name__)

KEY_TAG, OWNER_TAG = "tubelet.key", "tubelet.owner"
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits of one log_batch
MAX_VALUE = 6000
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
}


_IMPORT = threading.Lock()


def load_mlflow() -> Any:
    """MLflow, imported by one thread at a time: of two that import it at once, one sees half of it."""
    with _IMPORT:
        import mlflow
    return mlflow


def client_for(uri: str) -> Any:
    """An ``MlflowClient`` that gives up on a dead server in seconds; our spool does the waiting."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It prints the URIs of runs to stdout, with the password that is in them.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow = load_mlflow()
    # The making of its tables is no news to the person at the terminal.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


class RunStore:
    """Creates or finds the run on first use; skips metrics up to the last step already logged."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        key: str,
        owner: str,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.uri, self.experiment, self.run_name = uri, experiment, run_name
        self.key, self.owner, self.run_id = key, owner, run_id
        self.tags = dict(tags or {})
        self.client: Any = None
        self.on_open: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._opened = self._told = False
        self._last_step: dict[str, int] = {}
        self._params: dict[str, str] = {}

    def open(self) -> str:
        """Connect, find or create the run, mark it running. Cheap once done.

        Raises:
            UserError: the experiment or the run is deleted, the database is damaged or of another MLflow.
        """
        with self._lock:
            if self._opened and self.run_id:
                return self.run_id
            try:
                self.client = self.client or client_for(self.uri)
                run = self._find() or self._create()
            except Exception as error:
                reason = explained(error, self.uri)
                if reason is None:
                    raise
                raise reason from error
            self.run_id = str(run.info.run_id)
            if run.info.status != "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            self.client.set_tag(self.run_id, OWNER_TAG, self.owner)
            self._last_step = _last_steps(self.client, run)
            self._params = dict(run.data.params)
            self._opened = True
            self.on_open()
            self._tell(str(run.info.experiment_id))
            return self.run_id

    def check(self) -> None:
        """Look whether the experiment takes runs; makes neither it nor a run.

        Raises:
            UserError: as :meth:`open`.
        """
        try:
            self.client = client_for(self.uri)
            self._experiment()
        except Exception as error:
            reason = explained(error, self.uri)
            if reason is None:
                raise
            raise reason from error

    def _tell(self, experiment_id: str) -> None:
        """Say once where people find the run, where there is a page of it."""
        if not self._told and self.uri.startswith(("http://", "https://")):
            server = shown(self.uri).rstrip("/")
            logger.info("MLflow run: %s/#/experiments/%s/runs/%s", server, experiment_id, self.run_id)
        self._told = True

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            self.client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def send(self, records: Sequence[Record]) -> None:
        """Send records of one kind. Raises :class:`RefusedError` for good, anything else for another try."""
        load_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            with self._lock:
                self.open()
                getattr(self, f"_send_{records[0]['kind']}")(records)
        except UserError as error:  # nothing that waiting mends
            self._opened = False
            raise RefusedError(str(error)) from error
        except MlflowException as error:
            self._opened = False  # a lost reply: read again what arrived before the next try
            if error.error_code in _PERMANENT:
                raise RefusedError(str(error)) from error
            raise
        except Exception:
            self._opened = False
            raise

    def _find(self) -> Any | None:
        from mlflow.exceptions import MlflowException

        if self.run_id:
            try:
                found = self.client.get_run(self.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                if self._goes_on(found):
                    return found
        experiment = self._experiment()
        if experiment is None:
            return None
        runs = self.client.search_runs(
            [experiment.experiment_id], f"tags.`{KEY_TAG}` = '{self.key}'", max_results=1
        )
        return runs[0] if runs else None

    def _goes_on(self, run: Any) -> bool:
        """Whether ``run`` takes records. Not one of a deleted experiment where another is asked for now."""
        if run.info.lifecycle_stage == "active":
            return True
        experiment = self.client.get_experiment(run.info.experiment_id)
        if experiment.name != self.experiment:
            return False
        _check_active(experiment, self.uri)
        raise UserError(
            f"the MLflow run {self.run_id} at {shown(self.uri)} is deleted\n"
            f"restore it with `mlflow runs restore --run-id {self.run_id}`, or log to another --experiment"
        )

    def _experiment(self) -> Any | None:
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            _check_active(experiment, self.uri)
        return experiment

    def _create(self) -> Any:
        tags = {KEY_TAG: self.key, "mlflow.source.type": "LOCAL", **self.tags}
        return self.client.create_run(self._experiment_id(), tags=tags, run_name=self.run_name)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._experiment()
        if experiment is None:
            try:
                return str(
                    self.client.create_experiment(
                        self.experiment, _artifact_location(self.uri, self.experiment)
                    )
                )
            except MlflowException as error:  # another job was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._experiment()
                assert experiment is not None
        return str(experiment.experiment_id)

    def _send_metrics(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, record["time_ms"], record["step"], record.get("model_id"))
            for record in records
            for name, value in record["values"].items()
            if record["step"] > self._last_step.get(name, -1)
        ]
        for part in _chunks(points, MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=part)
        for point in points:
            self._last_step[point.key] = max(point.step, self._last_step.get(point.key, -1))

    def _send_system(self, records: Sequence[Record]) -> None:
        """Samples of the machine: their step is the count of samples, across restarts."""
        for record in records:
            step = 1 + max((self._last_step.get(name, -1) for name in record["values"]), default=-1)
            self._send_metrics([{**record, "step": step}])

    def _send_params(self, records: Sequence[Record]) -> None:
        """New parameters are logged; a changed one (MLflow forbids it) becomes a tag that says so."""
        from mlflow.entities import Param, RunTag

        values = {k: str(v)[:MAX_VALUE] for k, v in records[0]["values"].items()}
        new = [Param(k, v) for k, v in values.items() if k not in self._params]
        changed = [RunTag(f"changed.{k}", v) for k, v in values.items() if self._params.get(k, v) != v]
        for part in _chunks(new, MAX_PARAMS):
            self.client.log_batch(self.run_id, params=part)
        for tags in _chunks(changed, MAX_PARAMS):
            self.client.log_batch(self.run_id, tags=tags)
        self._params = {**values, **self._params}

    def _send_tags(self, records: Sequence[Record]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(k, str(v)[:MAX_VALUE]) for k, v in records[0]["values"].items()]
        for part in _chunks(tags, MAX_PARAMS):
            self.client.log_batch(self.run_id, tags=part)

    def _send_file(self, records: Sequence[Record]) -> None:
        path = Path(records[0]["path"])
        if not path.exists():  # sent by an earlier process that died before it could say so
            return
        self.client.log_artifact(self.run_id, str(path), records[0]["folder"] or None)
        path.unlink()

    def _send_link(self, records: Sequence[Record]) -> None:
        """MLflow's own links to the model and to the run that trained it, where both are of this server."""
        from mlflow.entities import LoggedModelInput
        from mlflow.exceptions import MlflowException

        model_id, trained = records[0]["model_id"], records[0]["run_id"]
        if trained and trained != self.run_id:
            try:
                self.client.get_run(trained)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                self.client.set_tag(self.run_id, "mlflow.parentRunId", trained)
        if model_id:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

    def _send_dataset(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for record in records:
            source = json.dumps({"uri": record["source"]})
            profile = json.dumps({"num_rows": record["rows"]})
            name = record["source"].rstrip("/").rpartition("/")[2]
            data = Dataset(name, record["digest"][:36], "manifest", source, profile=profile)
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", record["context"])]))
        self.client.log_inputs(self.run_id, datasets=inputs)

    def _send_status(self, records: Sequence[Record]) -> None:
        owner = self.client.get_run(self.run_id).data.tags.get(OWNER_TAG, self.owner)
        if owner != self.owner:
            return  # the run goes on in another process
        self.client.set_terminated(self.run_id, status=records[0]["status"], end_time=records[0]["time_ms"])


def _check_active(experiment: Any, uri: str) -> None:
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {experiment.name!r} at {shown(uri)} is deleted\n"
            f"restore it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`,"
            " or log to another --experiment"
        )


def _last_steps(client: Any, run: Any) -> dict[str, int]:
    """The highest step logged of each metric. ``run.data.metrics`` has values only, hence the inner list."""
    points = getattr(run.data, "_metric_objs", None)
    if points is not None:
        return {point.key: int(point.step) for point in points}
    steps = {}
    for name in run.data.metrics:
        steps[name] = max(int(point.step) for point in client.get_metric_history(run.info.run_id, name))
    return steps


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside the database where that is a local file (MLflow's default is the working folder of the day)."""
    parsed = urlparse(uri)
    if parsed.scheme != "sqlite" or not parsed.path.strip("/"):
        return None
    return (Path(parsed.path[1:]).resolve().parent / "mlruns" / experiment).as_uri()


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
