"""What to look at first, what is alike, and what changed between two runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, expect
from support.labelling import write_video
from support.review import row_of
from tubelet.config import UserError
from tubelet.inference.output import parquet_bytes
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import part_name
from tubelet.review.compare import Answer, compare, mcnemar
from tubelet.review.config import Queue, ReviewConfig
from tubelet.review.page import review
from tubelet.review.queues import choose, most_informative
from tubelet.storage import StorageOptions

CLASSES, PER_CLASS = 4, 10


def write_output(out: Path, rows: list[dict[str, Any]]) -> Path:
    schema = RowShape(embedding="float16", embedding_dim=8).schema()
    for name, kind in (("label_true", pa.string()), ("suspect", pa.float32())):
        schema = schema.append(pa.field(name, kind))
    out.mkdir()
    (out / part_name(0)).write_bytes(parquet_bytes(table_of(rows, schema)))
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on forty videos of four classes; the second mends class 1 and breaks one row of class 2."""
    folder, draw = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    video = str(write_video(folder / "v.mp4", 1))
    first, second = [], []
    for i in range(CLASSES * PER_CLASS):
        truth = i % CLASSES
        row = row_of(i + 1, video) | {
            "label_true": f"c{truth}",
            "label": f"c{truth}" if truth != 1 else "c0",
            "score": 0.55 + 0.01 * i,
            "topk_scores": [0.55 + 0.01 * i, 0.45 - 0.01 * i],
            "topk_labels": ["c0", "c1"],
            "embedding": np.eye(8)[truth] + draw.normal(0, 0.1, 8),
            "suspect": float(truth == 1) + i / 100,
        }
        first.append(row)
        second.append(row | {"label": f"c{truth}" if i != 6 else "c3"})
    return write_output(folder / "first", first), write_output(folder / "second", second)


def test_next_to_label_are_doubtful_of_all_classes_and_unlike() -> None:
    doubt = np.array([0.9, 0.9, 0.89, 0.5, 0.4, 0.1])
    vectors = np.eye(6, dtype=np.float32)
    vectors[1] = vectors[0]
    labels = ["a", "a", "a", "b", "a", "b"]
    assert most_informative(doubt, labels, vectors, 4) == [0, 3, 2, 4]
    assert most_informative(doubt, labels, None, 3) == [0, 3, 1]
    # One clip twice is one to label.
    assert 1 not in most_informative(doubt, labels, vectors, 6)


def test_queues_choose_and_say_why(runs: tuple[Path, Path]) -> None:
    first, second = map(str, runs)
    uncertain = choose(Queue.parse("uncertain=8"), first, None, StorageOptions())
    assert len(uncertain) == 8
    assert all("apart" in why for why in uncertain.values())
    suspects = choose(Queue.parse("suspects=3"), first, None, StorageOptions())
    assert list(suspects.values()) == ["suspect 1.37", "suspect 1.33", "suspect 1.29"]
    changed = choose(Queue.parse("disagree=50"), first, second, StorageOptions())
    assert len(changed) == PER_CLASS + 1
    with pytest.raises(UserError, match="'novelty'"):
        choose(Queue.parse("novel=3"), first, None, StorageOptions())
    with pytest.raises(UserError, match="give the other one"):
        choose(Queue.parse("disagree=3"), first, None, StorageOptions())
    for wrong in ("uncertain", "sure=3", "novel=0"):
        with pytest.raises(ValueError, match="uncertain=200"):
            Queue.parse(wrong)


def test_mcnemar() -> None:
    """Against the binomial distribution by hand: 1 of 8 and 7 of 8 or worse is 2 * 9 / 256."""
    assert mcnemar(7, 1) == pytest.approx(2 * 9 / 256)
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1.0
    one = {("a", 0): Answer("x", 0.5, "x"), ("b", 0): Answer("y", 0.5)}
    two = {("a", 0): Answer("y", 0.5), ("c", 0): Answer("y", 0.5)}
    found = compare(one, two, {})
    assert (found.rows, found.changed, found.only_first, found.only_second) == (1, 1, 1, 1)
    assert (found.known.gained, found.known.lost) == (0, 1)


def test_page_of_a_queue_compares_and_shows_what_is_alike(
    runs: tuple[Path, Path], browser: Browser, tmp_path: Path
) -> None:
    first, second = map(str, runs)
    out = tmp_path / "page.html"
    made = review(
        ReviewConfig(predictions=first, other=second, queue="uncertain=24", out=str(out), frames=1, height=32)
    )
    assert made.shown == 24
    assert made.compared is not None
    known = made.compared["known"]
    assert (known["gained"], known["lost"], known["p"]) == (10, 1, pytest.approx(mcnemar(10, 1)))
    assert made.compared["classes"]["c1"]["gained"] == PER_CLASS
    with browser.new_page() as page:
        page.goto(out.as_uri())
        assert page.get_by_label("Order", exact=True).input_value() == "queue"
        expect(page.locator("#compare")).to_contain_text("10 gained, 1 lost (McNemar, p = 0.012)")
        page.get_by_label("Change", exact=True).select_option("gained")
        labels = page.locator(".video b").all_text_contents()
        assert set(labels) == {"c0"}
        assert all("✓ c1" in text for text in page.locator(".other").all_text_contents())
        page.keyboard.press("Escape")
        # Neighbours are of the same class, and the lasso takes what it encircles.
        page.locator(".video").first.focus()
        page.keyboard.press("m")
        truths = page.locator(".truth").evaluate_all("all => all.map(one => one.textContent.slice(-2))")
        assert Counter(truths[:5]) == {truths[0]: 5}
        page.keyboard.press("Escape")
        page.locator("#map").scroll_into_view_if_needed()
        box = page.locator("#map").bounding_box()
        assert box is not None
        x, y, side = box["x"] - 1, box["y"] - 1, box["width"] + 2
        page.mouse.move(x + 2, y + 2)
        page.mouse.down()
        for dx, dy in ((0.5, 0), (0.5, 1), (0, 1)):
            page.mouse.move(x + 2 + dx * (side - 4), y + 2 + dy * (side - 4))
        page.mouse.up()
        inside = page.evaluate("data.videos.filter(row => row.point[0] < 0.49).length")
        shown = int(page.locator("#shown").inner_text().split()[0])
        assert abs(shown - inside) <= 2
        assert 0 < shown < 24
