"""The review page in a real browser: filters, order, search, errors, keys; and nothing in it is executed."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from support.labelling import CLASSES, write_video
from tubelet.config import UserError
from tubelet.inference.output import OutputFiles
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import PredictionSink, SinkLimits
from tubelet.review.page import ReviewConfig, ReviewSummary, review

EVIL = "<script>window.hit=1</script><img src=x onerror=window.hit=1>"
VIDEOS, ERRORS = 50, 3


def row_of(i: int, uri: str) -> dict[str, Any]:
    score = 0.30 + 0.6 * ((i * 37) % VIDEOS) / VIDEOS
    label = CLASSES[i % 3] if i else EVIL
    others = [name for name in CLASSES if name != label][:3]
    return {
        "key": f"k{i:04d}",
        "window": 0,
        "uri": uri,
        "status": "ok",
        "label": label,
        "score": score,
        "topk_labels": [label, *others],
        "topk_scores": [score, *[(1 - score) / 3] * 3],
        "views": 1,
        "clip_times_s": [0.0, 0.2, 0.4, 0.6],
        "model": "sha256:abc",
        "sampling": "8uniform@32",
    }


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    videos = [write_video(folder / "in" / f"clip {i} & co.mp4", i) for i in range(3)]
    rows = []
    for i in range(VIDEOS):
        copy = folder / "in" / ("sub" if i % 2 else "other") / f"v{i:03d}.mp4"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(videos[i % 3], copy)
        rows.append(row_of(i, str(copy)))
    rows[5]["uri"] = str(folder / "in" / "gone.mp4")
    for i in range(ERRORS):
        uri = str(folder / "in" / f"{EVIL}{i}.mp4")
        code = ["open_error", "timeout", "open_error"][i]
        rows.append(
            {"key": f"x{i}", "window": 0, "uri": uri, "status": "error", "error_code": code, "error": EVIL}
        )
    out = folder / "out"
    schema = RowShape().schema()
    sink = PredictionSink(OutputFiles(str(out)), schema, SinkLimits(part_rows=1))
    sink.add(table_of(rows[:30], schema))
    sink.add(table_of(rows[30:], schema))
    return out


@pytest.fixture(scope="module")
def made(predictions: Path) -> tuple[Path, ReviewSummary]:
    page = predictions.parent / "page.html"
    return page, review(ReviewConfig(predictions=str(predictions), out=str(page), frames=4, workers=2))


@pytest.fixture(scope="module")
def browser_page(made: tuple[Path, ReviewSummary]) -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "this test drives a real browser: install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(made[0].as_uri())
        yield page
        outside = [url for url in requests if not url.startswith(("file:", "data:"))]
        assert outside == [], "the page asked for something outside"
        browser.close()


@pytest.fixture
def page(browser_page: Page) -> Page:
    browser_page.reload()
    return browser_page


def scores(page: Page) -> list[float]:
    return [float(text.split()[0]) for text in page.locator(".video .score").all_text_contents()]


def test_summary_counts_what_is_on_the_page(made: tuple[Path, ReviewSummary]) -> None:
    path, summary = made
    assert (summary.videos, summary.shown, summary.errors) == (VIDEOS, VIDEOS, ERRORS)
    assert summary.without_frames == 1
    assert summary.size_bytes == path.stat().st_size


def test_every_video_has_its_strip(page: Page) -> None:
    page.get_by_label("Search").fill("sub/")
    strips = page.locator("img.strip")
    shown = page.locator(".video").count()
    assert strips.count() == shown
    assert page.evaluate("[...document.querySelectorAll('img.strip')].every(i => i.src.startsWith('data:'))")
    width = strips.first.evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert width == 4 * (96 + 2) - 2


def test_missing_frames_are_told(page: Page) -> None:
    page.get_by_label("Search").fill("gone.mp4")
    assert "No frames" in page.locator(".video .none").inner_text()


def test_filter_by_label(page: Page) -> None:
    page.get_by_label("Label", exact=True).select_option("right")
    labels = page.locator(".video b").all_text_contents()
    assert set(labels) == {"right"}
    assert page.locator("#shown").inner_text() == f"{len(labels)} of {VIDEOS}"
    page.locator("#classes button", has_text="up").click()
    assert set(page.locator(".video b").all_text_contents()) == {"up"}
    page.locator("#classes button", has_text="up").click()
    assert page.locator("#shown").inner_text() == f"{VIDEOS} shown"


def test_sort_by_confidence(page: Page) -> None:
    low = scores(page)
    assert low == sorted(low)
    page.get_by_label("Order", exact=True).select_option("high")
    high = scores(page)
    assert high == sorted(high, reverse=True)
    assert high[0] > low[0]


def test_more_rows_come_while_scrolling(page: Page) -> None:
    assert page.locator(".video").count() == 40
    page.keyboard.press("End")
    expect(page.locator(".video")).to_have_count(VIDEOS)


def test_search_finds_paths_and_labels(page: Page) -> None:
    page.get_by_label("Search").fill("other v01")
    paths = page.locator(".video .path").all_text_contents()
    assert paths == sorted(paths, key=paths.index)
    assert set(paths) == {f"other/v{i:03d}.mp4" for i in range(10, 20, 2)}
    page.get_by_label("Search").fill("nothing such")
    assert page.locator(".empty").inner_text() == "Nothing matches."


def test_errors_have_a_list_of_their_own(page: Page) -> None:
    page.get_by_role("tab", name="Errors (3)").click()
    assert page.locator(".video .code").all_text_contents().count("open_error") == 2
    assert page.locator("img.strip").count() == 0
    page.get_by_label("Label", exact=True).select_option("timeout")
    assert page.locator(".video .code").all_text_contents() == ["timeout"]
    page.get_by_role("tab", name="Labelled").click()
    assert page.locator("#shown").inner_text() == f"{VIDEOS} shown"


def test_keyboard_alone_is_enough(page: Page) -> None:
    page.keyboard.press("j")
    first = page.evaluate("document.activeElement.dataset.key")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.key") != first
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.dataset.key") == first
    page.keyboard.press("/")
    page.keyboard.type("sub/v001")
    assert page.locator(".video").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    assert page.locator(".video .code").count() == ERRORS
    page.keyboard.press("e")
    page.keyboard.press("s")
    assert page.get_by_label("Order", exact=True).input_value() == "high"


def test_names_and_labels_are_text_and_never_markup(page: Page) -> None:
    page.get_by_label("Search").fill("window.hit")
    assert page.locator(".video b").all_text_contents() == [EVIL]
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Errors (3)").click()
    assert EVIL in page.locator(".video .path").first.inner_text()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None


def test_limit_is_told_on_the_page(predictions: Path, tmp_path: Path) -> None:
    target = tmp_path / "few.html"
    summary = review(ReviewConfig(predictions=str(predictions), out=str(target), limit=4, frames=2))
    assert (summary.shown, summary.videos) == (4, VIDEOS)
    assert f"Shown are 4 of {VIDEOS} labelled videos" in target.read_text("utf-8")


def test_command_line(predictions: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.html"
    command = [
        str(Path(sys.executable).with_name("tubelet")),
        "review",
        str(predictions),
        "--out",
        str(target),
        "--limit",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["shown"] == 2
    assert target.exists()


def test_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the --out of `tubelet label`"):
        review(ReviewConfig(predictions=str(tmp_path), out=str(tmp_path / "p.html")))


def test_numbers_that_are_none_and_pictures_that_are_too_wide(tmp_path: Path) -> None:
    """Rows of earlier versions may hold NaN; a strip over the limit of JPEG is no picture, and no failure."""
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 4096, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 4096, 3), np.uint8))))
        container.mux(stream.encode())
    row = row_of(0, str(tmp_path / "wide.mp4"))
    row |= {"score": math.nan, "topk_scores": [math.nan, math.inf, 0.0, -math.inf]}
    schema = RowShape().schema()
    sink = PredictionSink(OutputFiles(str(tmp_path / "out")), schema, SinkLimits(part_rows=1))
    sink.add(table_of([row], schema))
    page = tmp_path / "page.html"
    made = review(ReviewConfig(predictions=str(tmp_path / "out"), out=str(page), workers=1))
    assert (made.videos, made.shown, made.without_frames) == (1, 1, 1)
    _, _, rest = page.read_text("utf-8").partition('id="data">')
    data = json.loads(rest.partition("</script>")[0], parse_constant=pytest.fail)
    assert data["videos"][0]["score"] is None
    assert data["videos"][0]["missing"].startswith("No picture: frames of ")
