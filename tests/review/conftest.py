"""One output of many rows, one page of it, one browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.labelling import write_video
from support.review import ERRORS, EVIL, VIDEOS, row_of, write_rows
from tubelet.review.config import ReviewConfig
from tubelet.review.page import ReviewSummary, review

# A busy machine takes its time.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty rows and three errors; names and labels are markup."""
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
    return write_rows(folder / "out", rows[:30], rows[30:])


@pytest.fixture(scope="session")
def made(predictions: Path) -> tuple[Path, ReviewSummary]:
    """The page of all rows, one file."""
    page = predictions.parent / "page.html"
    return page, review(ReviewConfig(predictions=str(predictions), out=str(page), frames=4, workers=2))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "these tests drive a real browser: install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser_page(made: tuple[Path, ReviewSummary], browser: Browser) -> Iterator[Page]:
    """The page, opened once; it may ask for nothing from elsewhere."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(made[0].as_uri())
    yield page
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [], "the page asked for something outside"
    assert errors == []
    page.close()


@pytest.fixture
def page(browser_page: Page, made: tuple[Path, ReviewSummary]) -> Page:
    """The page as it is when it is opened for the first time."""
    browser_page.evaluate("localStorage.clear()")
    if "#" in browser_page.url:
        browser_page.goto("about:blank")
        browser_page.goto(made[0].as_uri())
    else:
        browser_page.reload()
    return browser_page
