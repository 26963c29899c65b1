"""Which models were trained on which data."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from tubelet.tracking.registry import check_uri
from tubelet.tracking.store import client_for

_PAGE = 500


@dataclass(frozen=True)
class TrainedModel:
    """A training run.

    Attributes:
        run_id, name: of the run.
        out: where it wrote its checkpoints.
        versions: what was registered of it, as ``models:/NAME/VERSION``.
    """

    run_id: str
    name: str
    out: str
    versions: tuple[str, ...] = ()


def trained_on(manifests: Collection[str], uri: str | None) -> list[TrainedModel]:
    """Training runs that read one of ``manifests``, or one version of it, finished or not.

    Args:
        manifests: normalised URIs.
        uri: the tracking server; None: as usual.
    """
    where = check_uri(uri)
    if where.startswith("sqlite:///") and not os.path.exists(where.removeprefix("sqlite:///")):
        return []  # to look must not make a database
    client = client_for(where)
    experiments, token = [], None
    while True:
        found = client.search_experiments(view_type=3, max_results=_PAGE, page_token=token)
        experiments += [one.experiment_id for one in found]
        token = found.token
        if not token:
            break
    models = []
    while True:
        page = client.search_runs(
            experiments, "tags.`tubelet.job` = 'train'", run_view_type=3, max_results=_PAGE, page_token=token
        )
        for run in page:
            used = run.data.tags.get("tubelet.manifest", "")
            if used in manifests or used.rpartition("@")[0] in manifests:
                run_id = run.info.run_id
                versions = client.search_model_versions(f"run_id = '{run_id}'")
                named = tuple(f"models:/{one.name}/{one.version}" for one in versions)
                models.append(
                    TrainedModel(run_id, run.info.run_name or "", run.data.tags.get("tubelet.out", ""), named)
                )
        token = page.token
        if not token:
            return models
