"""The review page in a real browser: filters, order, search, errors, keys; and nothing in it is executed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from support.review import ERRORS, EVIL, VIDEOS, row_of, wait_for_video, write_rows
from tubelet.config import UserError
from tubelet.review.config import ReviewConfig
from tubelet.review.page import ReviewSummary, review


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


def test_search_finds_no_labels_that_were_not_given(page: Page) -> None:
    """Of the best five labels the first is the answer; every row has each class among them."""
    page.get_by_label("Search").fill("up")
    found = page.locator(".video").evaluate_all(
        "cards => cards.map(card => card.querySelector('.what').textContent)"
    )
    assert found
    assert all("up" in text for text in found)


def test_truth_stands_beside_the_label(page: Page) -> None:
    page.get_by_label("Search").fill("v010")
    wrong = page.locator(".truth").inner_text()
    assert wrong.startswith("✗ truth: ")
    assert page.locator(".video b").inner_text() not in wrong
    page.get_by_label("Search").fill("v006")
    assert page.locator(".truth").inner_text() == "✓ truth: " + page.locator(".video b").inner_text()


def test_figures_filter(page: Page) -> None:
    bar = page.locator("#histogram button").nth(10)
    count = int(str(bar.get_attribute("title")).rpartition(" ")[2])
    bar.click()
    assert page.locator("#shown").inner_text() == f"{count} of {VIDEOS}"
    assert all(50 <= score < 55 for score in scores(page))
    page.keyboard.press("Escape")
    cell = page.locator("#confusion td:not([data-right]) button").first
    truth, label, count = (
        cell.get_attribute("data-truth"),
        cell.get_attribute("data-label"),
        cell.inner_text(),
    )
    cell.click()
    assert page.locator("#shown").inner_text() == f"{count} of {VIDEOS}"
    assert set(page.locator(".video b").all_text_contents()) == {label}
    assert set(page.locator(".truth").all_text_contents()) == {f"✗ truth: {truth}"}
    page.get_by_role("button", name=f"Truth: {truth} ×").click()
    assert page.locator(".chip").count() == 0


def test_a_link_opens_what_was_shown(page: Page, browser: Browser) -> None:
    page.get_by_label("Label", exact=True).select_option("right")
    page.get_by_label("Order", exact=True).select_option("path")
    page.get_by_label("Search").fill("sub/ v0")
    page.keyboard.press("Escape")
    page.get_by_label("Label", exact=True).select_option("up")
    page.get_by_label("Search").fill("other")
    shown = page.locator(".video .path").all_text_contents()
    assert shown
    with browser.new_page() as other:
        other.goto(page.url)
        assert other.locator(".video .path").all_text_contents() == shown
        assert other.get_by_label("Order", exact=True).input_value() == "path"
        assert other.get_by_label("Search").input_value() == "other"


def test_video_plays_where_the_model_looked(page: Page) -> None:
    page.get_by_label("Search").fill("v007")
    assert page.locator("video").count() == 0
    page.locator(".video").focus()
    page.keyboard.press("p")
    expect(page.locator(".player")).to_contain_text("The model saw 0:00.0 to 0:00.6")
    wait_for_video(page, 2)
    page.keyboard.press("p")
    assert page.locator("video").count() == 0
    assert page.locator("img.strip").count() == 1


def test_light_and_dark(page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.keyboard.press("t")
    page.wait_for_function(f"{colour} !== '{before}'")
    page.reload()
    page.wait_for_function(f"{colour} !== '{before}'")
    page.keyboard.press("t")
    page.wait_for_function(f"{colour} === '{before}'")


def test_axe_finds_nothing_serious(page: Page) -> None:
    page.keyboard.press("j")
    page.keyboard.press("a")
    for _ in ("light", "dark"):
        found = Axe().run(page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], v["nodes"][0]["html"]) for v in serious]
        page.keyboard.press("t")


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
    write_rows(tmp_path / "out", [row])
    page = tmp_path / "page.html"
    made = review(ReviewConfig(predictions=str(tmp_path / "out"), out=str(page), workers=1))
    assert (made.videos, made.shown, made.without_frames) == (1, 1, 1)
    _, _, rest = page.read_text("utf-8").partition('id="data">')
    data = json.loads(rest.partition("</script>")[0], parse_constant=pytest.fail)
    assert data["videos"][0]["score"] is None
    assert data["videos"][0]["missing"].startswith("No picture: frames of ")
