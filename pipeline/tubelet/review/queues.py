"""What to look at first: the rows whose review teaches most, or whose answers are most in doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.sink import part_name, part_numbers
from tubelet.review.config import Queue
from tubelet.review.survey import Place
from tubelet.storage import StorageOptions
from tubelet.video import Status

Floats = npt.NDArray[np.float32]

# Columns of scores that others may fill, the higher the sooner to look at.
SCORE_COLUMNS = {"suspects": "suspect", "novel": "novelty"}
# How much views (or whatever filled it) disagree on a row, from 0 to 1.
DISAGREEMENT = "disagreement"
# Clips whose embeddings are closer than this are one clip for whoever labels them.
_SAME_CLIP = 0.02
_CANDIDATES_PER_ROW = 20
_COLUMNS = ["key", "window", "status", "label", "score", "topk_scores", "embedding", DISAGREEMENT]


def choose(queue: Queue, predictions: str, other: str | None, options: StorageOptions) -> dict[Place, str]:
    """The rows of ``queue`` in the order in which to look at them, and why each is there.

    Args:
        other: predictions of another model for the same videos.

    Raises:
        UserError: there are no predictions, or not what the queue goes by.
    """
    extra = SCORE_COLUMNS.get(queue.kind)
    table = read_columns(predictions, [*_COLUMNS, *([extra] if extra else [])], options)
    table = table.filter(pc.equal(table["status"], Status.OK.value))
    if queue.kind == "uncertain":
        return _uncertain(table, queue.count, _answers(other, options))
    if queue.kind == "disagree":
        return _disagreeing(table, queue.count, _answers(other, options))
    assert extra is not None
    if extra not in table.column_names:
        raise UserError(
            f"{predictions} has no column {extra!r}, by which the queue {queue.kind} goes: add it to the rows"
            " (the higher, the sooner to look at)"
        )
    return _highest(table, extra, queue.count)


def read_columns(uri: str, columns: Sequence[str], options: StorageOptions) -> pa.Table:
    """Those of ``columns`` that an output has, of all its rows.

    Raises:
        UserError: there are no predictions.
    """
    files = OutputFiles(uri, options)
    names = [part_name(number) for number in part_numbers(files.names())]
    if not names:
        raise UserError(f"no predictions at {files.uri}: give the --out of `tubelet label`")
    return pa.concat_tables([files.read_table(name, list(columns)) for name in names])


def places_of(table: pa.Table) -> list[Place]:
    """Keys and windows of the rows."""
    return list(zip(table["key"].to_pylist(), table["window"].to_pylist(), strict=True))


def unit_embeddings(table: pa.Table) -> Floats | None:
    """Embeddings less their mean, float32 ``(rows, dim)`` of length 1; None where there are none.

    What all clips have in common would make every two of them alike. Missing embeddings are zero.
    """
    if "embedding" not in table.column_names or not table.num_rows:
        return None
    column = table["embedding"].combine_chunks()
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
    found = np.nan_to_num(values.reshape(table.num_rows, -1))
    found -= found.mean(axis=0)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(length, 1e-12), np.float32)


def most_informative(
    doubt: npt.NDArray[np.float64], labels: Sequence[str], embeddings: Floats | None, count: int
) -> list[int]:
    """Row numbers to label next: in doubt, of all classes, and none like another.

    Each next row is the one of the greatest product of its doubt, its distance to the nearest one chosen, and
    ``1 / (1 + rows of its class chosen)``.

    Args:
        doubt: float64 ``(rows,)``, from 0 to 1.
        labels: the predicted class of each row.
        embeddings: float32 ``(rows, dim)`` of length 1.
    """
    order = np.argsort(-doubt, kind="stable")[: max(_CANDIDATES_PER_ROW * count, 1000)]
    weight = doubt[order] + 1e-6
    vectors = None if embeddings is None else embeddings[order]
    distance = np.ones(len(order))
    classes = np.unique([labels[i] for i in order], return_inverse=True)[1]
    chosen: list[int] = []
    of_class = np.zeros(classes.max(initial=0) + 1)
    left = np.ones(len(order), np.bool_)
    while len(chosen) < min(count, len(order)) and left.any():
        value = np.where(left, weight * distance / (1 + of_class[classes]), -1.0)
        best = int(value.argmax())
        chosen.append(int(order[best]))
        left[best] = False
        of_class[classes[best]] += 1
        if vectors is not None:
            distance = np.minimum(distance, np.clip(1 - vectors @ vectors[best], 0, 1))
            left &= distance > _SAME_CLIP
    return chosen


def _uncertain(table: pa.Table, count: int, other: Mapping[Place, tuple[str, float]]) -> dict[Place, str]:
    places, labels = places_of(table), table["label"].to_pylist()
    margin = np.array([_margin(scores or ()) for scores in table["topk_scores"].to_pylist()], np.float64)
    doubt, split = 1 - margin, np.zeros(len(margin))
    if DISAGREEMENT in table.column_names:
        split = np.nan_to_num(table[DISAGREEMENT].to_numpy().astype(np.float64))
    differs = np.array(
        [place in other and other[place][0] != label for place, label in zip(places, labels, strict=True)]
    )
    doubt = 1 - (1 - doubt) * (1 - np.clip(split, 0, 1)) * np.where(differs, 0.5, 1.0)
    chosen = most_informative(doubt, labels, unit_embeddings(table), count)

    def why(i: int) -> str:
        said = [f"first and second label {100 * margin[i]:.0f} % apart"]
        said += [f"disagreement {split[i]:.2f}"] if split[i] else []
        said += [f"the other run says {other[places[i]][0]}"] if differs[i] else []
        return ", ".join(said)

    return {places[i]: why(i) for i in chosen}


def _margin(scores: Sequence[float]) -> float:
    known = [score for score in scores if np.isfinite(score)]
    return float(np.clip(known[0] - known[1], 0, 1)) if len(known) > 1 else 1.0


def _disagreeing(table: pa.Table, count: int, other: Mapping[Place, tuple[str, float]]) -> dict[Place, str]:
    if not other:
        raise UserError(
            "the queue disagree compares two runs: give the other one's predictions after the first"
        )
    found = []
    columns = (table["label"].to_pylist(), table["score"].to_pylist())
    for place, label, score in zip(places_of(table), *columns, strict=True):
        said = other.get(place)
        if said is not None and said[0] != label:
            both = min(_number(score), _number(said[1]))
            found.append((-both, place, f"the other run says {said[0]} ({100 * _number(said[1]):.0f} %)"))
    return {place: why for _, place, why in sorted(found)[:count]}


def _highest(table: pa.Table, column: str, count: int) -> dict[Place, str]:
    scores = table[column].to_numpy().astype(np.float64)
    order = [int(i) for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])][:count]
    places = places_of(table)
    return {places[i]: f"{column} {scores[i]:.3g}" for i in order}


def _answers(uri: str | None, options: StorageOptions) -> dict[Place, tuple[str, float]]:
    if uri is None:
        return {}
    table = read_columns(uri, ["key", "window", "status", "label", "score"], options)
    table = table.filter(pc.equal(table["status"], Status.OK.value))
    pairs = zip(table["label"].to_pylist(), table["score"].to_pylist(), strict=True)
    return dict(zip(places_of(table), pairs, strict=True))


def _number(score: float | None) -> float:
    return score if score is not None and np.isfinite(score) else 0.0
