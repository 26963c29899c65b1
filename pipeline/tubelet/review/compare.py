"""Two runs on the same videos: what changed, and whether the second is better by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.compute as pc

from tubelet.review.queues import places_of, read_columns
from tubelet.review.survey import Place
from tubelet.storage import StorageOptions
from tubelet.video import Status


@dataclass(frozen=True)
class Answer:
    """What a run said of a row, and the truth where its table has it."""

    label: str
    score: float | None
    truth: str | None = None


@dataclass
class Gains:
    """Of rows whose truth is known: how many each run has right, and what the second gained and lost.

    Attributes:
        p: of McNemar's exact test: the chance of so uneven gains and losses if the runs were equally good.
    """

    rows: int = 0
    first: int = 0
    second: int = 0
    gained: int = 0
    lost: int = 0
    p: float = 1.0

    def add(self, first: bool, second: bool) -> None:
        """Count one row by who has it right."""
        self.rows += 1
        self.first += first
        self.second += second
        self.gained += second and not first
        self.lost += first and not second


@dataclass
class Comparison:
    """What :func:`compare` found.

    Attributes:
        rows: rows that both runs labelled; ``only_first`` and ``only_second``: those that one did.
        changed: rows whose label differs.
        known: of the rows whose truth is known.
        classes: the same by true label.
    """

    rows: int = 0
    changed: int = 0
    only_first: int = 0
    only_second: int = 0
    known: Gains = field(default_factory=Gains)
    classes: dict[str, Gains] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the page and the summary."""
        return asdict(self)


def compare(
    first: Mapping[Place, Answer], second: Mapping[Place, Answer], truth: Mapping[Place, Mapping[str, str]]
) -> Comparison:
    """Compare two runs row by row.

    Args:
        truth: labels of a manifest; they win over those in the tables of the runs.
    """
    found = Comparison()
    found.only_first, found.only_second = len(first.keys() - second.keys()), len(second.keys() - first.keys())
    for place in first.keys() & second.keys():
        one, two = first[place], second[place]
        found.rows += 1
        found.changed += one.label != two.label
        true = truth.get(place, {}).get("label") or one.truth or two.truth
        if true is not None:
            right = one.label == true, two.label == true
            found.known.add(*right)
            found.classes.setdefault(true, Gains()).add(*right)
    for gains in (found.known, *found.classes.values()):
        gains.p = mcnemar(gains.gained, gains.lost)
    found.classes = dict(sorted(found.classes.items(), key=lambda item: (_change(item[1]), item[0])))
    return found


def _change(gains: Gains) -> int:
    """Greatest losses first."""
    return gains.gained - gains.lost


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided: its p value. Source: McNemar 1947, with the binomial distribution."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def read_answers(uri: str, options: StorageOptions) -> dict[Place, Answer]:
    """What a run said, by key and window; failed rows are none.

    Raises:
        UserError: there are no predictions.
    """
    table = read_columns(uri, ["key", "window", "status", "label", "score", "label_true"], options)
    table = table.filter(pc.equal(table["status"], Status.OK.value))
    nothing: Iterable[None] = [None] * table.num_rows
    truth = table["label_true"].to_pylist() if "label_true" in table.column_names else nothing
    said = zip(table["label"].to_pylist(), table["score"].to_pylist(), truth, strict=True)
    return {place: Answer(*answer) for place, answer in zip(places_of(table), said, strict=True)}
