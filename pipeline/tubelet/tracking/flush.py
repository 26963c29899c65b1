"""Sends what the spool of a driver that has died still holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.tracking.spool import Record, RefusedError, first_line, keep_refused, read_journal, remove_sent
from tubelet.tracking.store import OWNER_TAG, RunStore, client_for


def flush_spool(folder: Path, state: Mapping[str, Any], final: Record) -> bool:
    """Send what a dead driver left in ``folder`` and then ``final``; True when there is nothing more to do.

    Stops without a word when the run has a new owner (it was resumed). What the server refuses stays there.
    """
    store = RunStore(
        state["uri"],
        state["experiment"],
        state["run_name"],
        key=state["key"],
        owner=state["owner"],
        run_id=state["run_id"],
        tags=state["tags"],
    )
    try:
        if _resumed(folder, state) or (state["run_id"] and not _owned(client_for(state["uri"]), state)):
            return True
        refused = []
        for record in [r for r in read_journal(folder) if r["kind"] != "status"] + [final]:
            try:
                store.send([record])
            except RefusedError as error:
                refused.append((record, first_line(error)))
    except Exception:
        return False
    for record, reason in refused:
        keep_refused(folder, [record], reason)
    remove_sent(folder)
    return True


def _owned(client: Any, state: Mapping[str, Any]) -> bool:
    run = client.get_run(state["run_id"])
    return bool(run.info.status == "RUNNING" and run.data.tags.get(OWNER_TAG) == state["owner"])


def _resumed(folder: Path, state: Mapping[str, Any]) -> bool:
    path = folder / "state.json"
    return not path.exists() or json.loads(path.read_text("utf-8"))["owner"] != state["owner"]
