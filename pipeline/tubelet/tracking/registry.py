"""Models in MLflow: logged from code (never a pickle), registered, found again by their URIs."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from tubelet._version import __version__
from tubelet.config import UserError
from tubelet.tracking.database import explained, shown
from tubelet.tracking.pyfunc import save_pyfunc
from tubelet.tracking.store import client_for

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
_SCHEMES = ("", "file", "sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")

# What MLflow's databases hold of the description of a version.
_LONGEST_DESCRIPTION = 5000
_ABOUT_MODEL = """A video classifier trained by `tubelet train`; each version says what it was trained on.

    tubelet label SRC --model models:/{name}/VERSION --out URI
"""


@dataclass(frozen=True)
class ModelLink:
    """Where a model comes from: what a run that uses it points back to."""

    uri: str
    run_id: str | None = None
    name: str | None = None
    version: str | None = None
    model_id: str | None = None

    @property
    def identity(self) -> str | None:
        """``models:/name/version``, or None for a model that is not registered."""
        return f"models:/{self.name}/{self.version}" if self.version else None

    def tags(self) -> dict[str, str]:
        """Tags for the run that uses the model."""
        found = {
            "tubelet.model_uri": self.uri,
            "tubelet.model_run_id": self.run_id,
            "tubelet.model_version": self.identity,
            "tubelet.model_id": self.model_id,
        }
        return {name: value for name, value in found.items() if value}


def default_tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database file in the working folder."""
    return check_uri(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


def check_uri(uri: str | None) -> str:
    """``uri`` with paths made absolute, so that it means the same in other processes.

    Raises:
        UserError: a scheme that MLflow does not know.
    """
    if uri is None:
        return default_tracking_uri()
    scheme, sep, rest = uri.partition(":")
    if not sep:
        return Path(uri).absolute().as_uri()
    if scheme.partition("+")[0] not in _SCHEMES:
        raise UserError(
            f"--tracking-uri {uri!r}: not one that MLflow knows; give http://HOST:PORT or sqlite:///FILE.db"
        )
    if scheme == "sqlite" and rest.startswith("///") and not rest.startswith("////"):
        return f"sqlite:///{Path(rest[3:]).absolute()}"
    return uri


def code_tags() -> dict[str, str]:
    """Which code runs: the package's version, and the commit where it runs from a checkout."""
    tags = {"tubelet.version": __version__}
    root = Path(__file__).resolve().parents[3]
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
            tags["mlflow.source.git.commit"] = done.stdout.strip().removesuffix("-dirty")
            tags["tubelet.code_dirty"] = str(done.stdout.strip().endswith("-dirty")).lower()
    return tags


def log_model(
    uri: str,
    run_id: str,
    bundle: Path,
    name: str,
    *,
    alias: str | None = None,
    step: int = 0,
    card: str = "",
) -> str | None:
    """Log the model folder as MLflow's own kind of model, and register it; returns the version.

    ``card``: what the version says of itself, in Markdown.

    The logged folder holds ``model.safetensors`` (weights, config, label names, preprocessing) and the code
    that reads it, so that ``mlflow.pyfunc.load_model`` works without tubelet and without the recipe.
    """
    from mlflow.entities import LoggedModelOutput

    client = client_for(uri)
    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, model_type="video-classification"
    )
    with tempfile.TemporaryDirectory(prefix="tubelet-model-") as folder:
        local = Path(folder) / "model"
        save_pyfunc(bundle / MODEL_FILE, local, logged, run_id)
        client.log_model_artifacts(logged.model_id, str(local))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    with _as_default(uri):
        return _register(client, name, logged.model_id, alias, card)


def resolve_model(uri: str, tracking_uri: str | None = None) -> tuple[Path, ModelLink]:
    """The local folder with ``model.safetensors`` of a ``runs:/…`` or ``models:/…`` URI, and its origin.

    What was downloaded once is kept in ``~/.cache/tubelet/models`` (``TUBELET_CACHE`` moves it): a registered
    version never changes.

    Raises:
        UserError: no such run, model, version or alias; the tracking server does not answer.
    """
    from mlflow.exceptions import MlflowException

    tracking_uri = check_uri(tracking_uri)
    client = client_for(tracking_uri)
    try:
        link = _resolve(client, uri)
        return _download(client, link, tracking_uri), link
    except Exception as error:
        damage = explained(error, tracking_uri)
        if damage is None and not isinstance(error, MlflowException):
            raise
        reason = str(error).splitlines()[0]
        raise damage or UserError(
            f"cannot load {uri} from {shown(tracking_uri)}: {reason}; check --tracking-uri"
        ) from error


def metric_history(run_id: str, name: str, tracking_uri: str) -> dict[int, float]:
    """The values of a metric by step; where a step has several, the last."""
    return {point.step: point.value for point in client_for(tracking_uri).get_metric_history(run_id, name)}


def model_link(uri: str, run_id: str | None, tracking_uri: str | None) -> ModelLink:
    """What MLflow knows of a model that was loaded from a folder but trained in ``run_id``."""
    link = ModelLink(uri, run_id)
    if run_id is None:
        return link
    # The model's run may be on another server, or gone: the tags then say what is known.
    with suppress(Exception):
        client = client_for(check_uri(tracking_uri))
        found = client.search_model_versions(f"run_id='{run_id}'")
        if found:
            newest = max(found, key=lambda one: int(one.version))
            return _of_version(uri, newest)
    return link


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Registering, and a local database's registry, go by the process's default URIs, not by ours."""
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        # Both set the environment as well.
        mlflow.set_registry_uri(None)
        mlflow.set_tracking_uri(None)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def describe_version(uri: str, link: ModelLink, title: str, text: str) -> None:
    """Put ``text`` under the heading ``title`` into the description of a registered version.

    What stood under that heading is replaced; the rest stays.
    """
    if link.name is None or link.version is None:
        return
    client = client_for(uri)
    before = client.get_model_version(link.name, link.version).description or ""
    parts = [
        part for part in re.split(r"(?m)^(?=## )", before) if part and part.split("\n", 1)[0] != f"## {title}"
    ]
    # First: what is shortened loses its end.
    new = f"## {title}\n\n{text.rstrip()}\n"
    whole = "\n".join([new, *(part.rstrip() + "\n" for part in parts)])
    client.update_model_version(link.name, link.version, description=shortened(whole))


def shortened(text: str) -> str:
    """``text`` within what MLflow's databases hold of a description, in whole lines."""
    if len(text) <= _LONGEST_DESCRIPTION:
        return text
    note = "\n\n(shortened: the whole is with the run)\n"
    return text[: _LONGEST_DESCRIPTION - len(note)].rpartition("\n")[0] + note


def _register(client: Any, name: str, model_id: str, alias: str | None, card: str) -> str:
    import mlflow

    # By MLflow's own function, which also tells the logged model of its version: their pages are linked.
    with redirect_stderr(StringIO()):
        made = mlflow.register_model(f"models:/{model_id}", name, await_registration_for=60)
    if alias:
        client.set_registered_model_alias(name, alias, made.version)
    try:
        _describe(client, name, made.version, card)
    except Exception as error:
        logger.warning(f"version {made.version} of {name} has no description in MLflow: {error}")
    return str(made.version)


def _describe(client: Any, name: str, version: str, card: str) -> None:
    if card:
        client.update_model_version(name, version, description=shortened(card))
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, description=_ABOUT_MODEL.format(name=name))


def _resolve(client: Any, uri: str) -> ModelLink:
    scheme, _, rest = uri.partition(":/")
    rest = rest.strip("/")
    if scheme == "runs":
        return _of_run(client, uri, *rest.partition("/")[::2])
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return _of_version(uri, client.get_model_version_by_alias(name, alias))
    name, _, number = rest.partition("/")
    if number == "latest":
        found = client.search_model_versions(f"name='{name}'")
        if not found:
            raise UserError(f"no model {name!r} is registered: train it, or check --tracking-uri")
        return _of_version(uri, max(found, key=lambda one: int(one.version)))
    if number:
        return _of_version(uri, client.get_model_version(name, number))
    model = client.get_logged_model(name)
    return ModelLink(uri, model.source_run_id, None, None, model.model_id)


def _of_run(client: Any, uri: str, run_id: str, name: str) -> ModelLink:
    run = client.get_run(run_id)
    outputs = list(run.outputs.model_outputs) if run.outputs else []
    models = [client.get_logged_model(one.model_id) for one in sorted(outputs, key=lambda one: one.step)]
    models = [model for model in models if name in ("", "model", model.name)]
    if not models:
        raise UserError(f"the run {run_id} has no model: train it to the end, or give its --out folder")
    found = client.search_model_versions(f"run_id='{run_id}'")
    for one in found:
        if _model_id(one) == models[-1].model_id:
            return _of_version(uri, one)
    return ModelLink(uri, run_id, None, None, models[-1].model_id)


def _of_version(uri: str, found: Any) -> ModelLink:
    return ModelLink(uri, found.run_id, found.name, str(found.version), _model_id(found))


def _model_id(found: Any) -> str | None:
    """The logged model behind a version: its own field or, as the SQL store has it, its source."""
    source = str(found.source or "")
    return found.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)


def _download(client: Any, link: ModelLink, tracking_uri: str) -> Path:
    name = f"{tracking_uri} {link.model_id or link.identity}"
    target = cache_folder() / hashlib.blake2b(name.encode(), digest_size=10).hexdigest()
    # A logged model's id is unique for ever; the number of a version is not, where a database was made anew.
    if not (link.model_id and (target / MODEL_FILE).exists()):
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _fetch_weights(client, link, tracking_uri, Path(folder)).replace(target / MODEL_FILE)
    return target


def _fetch_weights(client: Any, link: ModelLink, tracking_uri: str, folder: Path) -> Path:
    """Download the one file that matters of a logged model."""
    import mlflow

    if link.model_id:
        location = client.get_logged_model(link.model_id).artifact_location
    else:
        location = client.get_model_version_download_uri(link.name, link.version)
    for place in (f"artifacts/weights/{MODEL_FILE}", MODEL_FILE):
        uri = f"{location.rstrip('/')}/{place}"
        with suppress(Exception):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri
            )
            return Path(found)
    raise UserError(f"{link.uri} has no {MODEL_FILE} that can be read at {location}: did tubelet log it?")


def cache_folder() -> Path:
    """Where downloaded models are kept."""
    root = os.environ.get("TUBELET_CACHE")
    folder = Path(root) if root else Path.home() / ".cache" / "tubelet"
    return folder / "models"
