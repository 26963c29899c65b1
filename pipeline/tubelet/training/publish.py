"""What a run of steps leaves: its final model and its best one, registered and in the output."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tubelet import storage
from tubelet.inference.bundle import ModelBundle
from tubelet.storage import with_retries
from tubelet.tracking import Tracker
from tubelet.training.card import model_card
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.prepare import Prepared
from tubelet.training.state import MODEL_FILE


def publish(prepared: Prepared, tracker: Tracker) -> dict[str, Any]:
    """Register the final model and the best, then write the final one: whoever sees it sees the run's end."""
    request, total = prepared.request, prepared.total_steps
    store = CheckpointStore.of(request)
    name = request.model_name
    with tempfile.TemporaryDirectory(prefix="tubelet-final-") as folder:
        final = _stamped(store, total, Path(folder), tracker)
        notes = final.metadata
        # Without validation no step is better than another.
        best: int | None = (notes.get("best") or {}).get("step")
        card = model_card(prepared, notes)
        version = tracker.log_model(Path(folder) / "step", name, alias="final", step=total, card=card)
        best_version = version if best == total else None
        if best is not None and best != total and store.is_complete(best):
            with tempfile.TemporaryDirectory(prefix="tubelet-best-") as other:
                card = model_card(prepared, _stamped(store, best, Path(other), tracker).metadata)
                best_version = tracker.log_model(
                    Path(other) / "step", name, alias="best", step=best, card=card
                )
        elif best == total and version is not None:
            tracker.set_alias(name, "best", version)
        local = Path(folder) / "step" / MODEL_FILE
        target = storage.join(request.out, MODEL_FILE)
        with_retries(lambda: storage.upload_file(local, target, request.out_options))
    return {
        "out": request.out,
        "steps": total,
        "run_id": tracker.run_id,
        "model_name": name,
        "model_version": version,
        "best_step": best,
        "best_version": best_version,
        **{f"val_{k}": v for k, v in (notes.get("validation") or {}).get("scores", {}).items()},
    }


def _stamped(store: CheckpointStore, step: int, folder: Path, tracker: Tracker) -> ModelBundle:
    """The model of a checkpoint, which also says its run, in ``folder``/step."""
    files = store.fetch(step, folder / "fetched")
    bundle = ModelBundle.load(files / MODEL_FILE)
    bundle.metadata["run_id"] = tracker.run_id
    bundle.save(folder / "step")
    return bundle
