"""How far the labels of a job lie from those of the model's validation videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from tubelet.config import UserError
from tubelet.corpus.manifest import ManifestSlices
from tubelet.corpus.selection import label_values, select
from tubelet.inference.bundle import ModelBundle
from tubelet.storage.pinned import retry_if_changed


@dataclass(frozen=True)
class Expectation:
    """What the model's validation videos looked like.

    Attributes:
        share: share of each label, summing to 1.
        confidence: mean score of the first label, where it is known.
        origin: where this comes from, for people.
    """

    share: Mapping[str, float]
    confidence: float | None
    origin: str


def expectation(bundle: ModelBundle) -> Expectation | None:
    """What the model file's ``validation`` says (``share``, ``confidence``); None where it cannot be had.

    Without it, the labels of the validation split of the manifest that the model was trained on.
    """
    known = bundle.metadata.get("validation")
    if isinstance(known, dict) and known.get("share"):
        return Expectation(known["share"], known.get("confidence"), "the model's validation")
    source = bundle.metadata.get("manifest")
    if not isinstance(source, str):
        return None
    head = next(iter(bundle.labels))
    with suppress(UserError, OSError):
        for split, labels in retry_if_changed(lambda: _labels(source, head)).items():
            if labels:
                share = {name: count / labels.total() for name, count in labels.items()}
                return Expectation(share, None, f"split {split!r} of {source}")
    return None


def _labels(manifest: str, head: str) -> dict[str, Counter[str]]:
    """How often each label stands in the splits that validate."""
    found: dict[str, Counter[str]] = {"val": Counter(), "test": Counter()}
    for rows in ManifestSlices.open(manifest, without=("keyframes_s",)):
        for split, labels in found.items():
            chosen = select(rows, split, labelled=True, head=head)
            labels.update(label_values(chosen, head).to_pylist())
    return found


def total_variation(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Half the sum of the differences of two distributions: 0 for equal ones, 1 where nothing is shared."""
    names = set(found) | set(expected)
    return sum(abs(found.get(name, 0.0) - expected.get(name, 0.0)) for name in names) / 2
