"""A page of ten thousand rows: its size, the time to its first row, its memory; what people do on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from support.labelling import CLASSES, write_video
from support.review import downloaded, press, row_of
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import key_of, read_manifest
from tubelet.inference.output import parquet_bytes
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import part_name
from tubelet.review.config import ReviewConfig
from tubelet.review.page import ReviewSummary, review

pytestmark = pytest.mark.slow

ROWS, DIFFERENT, MINE = 10_000, 20, 24
FIRST_ROW = """
new MutationObserver((_, seen) => {
  if (document.querySelector(".video")) {
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.firstRowMs = performance.now(); }));
  }
}).observe(document, {childList: true, subtree: true});
"""
# Pictures and figures to look at go where this says.
SHOTS = os.environ.get("TUBELET_SCREENSHOTS")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen videos to train on, in ``mine``, and as many names for a few others as there are rows."""
    folder = tmp_path_factory.mktemp("large")
    videos = [write_video(folder / "seen" / f"{i}.mp4", i) for i in range(DIFFERENT)]
    for i in range(ROWS):
        path = folder / "in" / (f"mine/v{i:05d}.mp4" if i < MINE else f"{i % 100:02d}/a clip of {i}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(videos[i % DIFFERENT])
    return folder


@pytest.fixture(scope="module")
def made(corpus: Path) -> tuple[Path, ReviewSummary, float]:
    root, draw = corpus / "in", np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i, path in enumerate(sorted(root.rglob("*.mp4"))):
        vector = np.eye(16)[i % 3] + draw.normal(0, 0.3, 16)
        row = row_of(i + 1, str(path)) | {"key": key_of(str(path.relative_to(root))), "embedding": vector}
        rows.append(row)
    schema = RowShape(embedding="float16", embedding_dim=16).schema()
    schema = schema.append(pa.field("label_true", pa.string()))
    out = corpus / "out"
    out.mkdir()
    (out / part_name(0)).write_bytes(parquet_bytes(table_of(rows, schema)))
    page, started_s = corpus / "page.html", time.monotonic()
    summary = review(ReviewConfig(predictions=str(out), out=str(page), limit=ROWS))
    return page, summary, time.monotonic() - started_s


def test_ten_thousand_rows(
    made: tuple[Path, ReviewSummary, float], corpus: Path, browser: Browser, tmp_path: Path
) -> None:
    path, summary, made_s = made
    assert summary.shown == ROWS
    beside = sum(file.stat().st_size for file in (corpus / "page_files").iterdir())
    figures: dict[str, float] = {
        "made_s": made_s,
        "page_mb": path.stat().st_size / 1e6,
        "beside_mb": beside / 1e6,
    }
    assert path.stat().st_size < 20e6
    assert Path(summary.alone).stat().st_size <= 10e6
    figures["first_row_s"] = median(first_row_s(path, browser) for _ in range(5))
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector(".video")
        figures["heap_mb"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        figures["sheets_at_first"] = sum(url.endswith(".jpg") for url in requests)
        started_s = time.monotonic()
        page.get_by_label("Label", exact=True).select_option("right")
        expect(page.locator("#shown")).to_contain_text(f"of {ROWS}")
        figures["filter_s"] = time.monotonic() - started_s
        assert set(page.locator(".video b").all_text_contents()) == {"right"}
        page.keyboard.press("Escape")
        started_s = time.monotonic()
        page.get_by_label("Search").fill("mine/")
        expect(page.locator(".video")).to_have_count(MINE)
        figures["search_s"] = time.monotonic() - started_s
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
        look(page, tmp_path)
        figures["round_trip_videos"] = round_trip(page, corpus, tmp_path)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    assert figures["first_row_s"] < 2


def first_row_s(path: Path, browser: Browser) -> float:
    """From navigation until the first row was painted, in a browser context that saw nothing before."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.add_init_script(FIRST_ROW)
        page.goto(path.as_uri())
        page.wait_for_selector(".video")
        for _ in range(400):
            found = page.evaluate("window.firstRowMs ?? 0")
            if found:
                return float(found) / 1000
            page.wait_for_timeout(50)
    raise AssertionError("no row was painted")


def look(page: Page, folder: Path) -> None:
    """Axe in both themes, narrow and wide; and pictures for people, where they are asked for."""
    shots = Path(SHOTS) if SHOTS else folder
    for theme in ("light", "dark"):
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            page.screenshot(path=shots / f"page-{theme}-{width}.png")
            found = Axe().run(page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert not serious, (theme, width, [(one["id"], one["nodes"][0]["html"]) for one in serious])
        page.locator("main").click(position={"x": 2, "y": 2})
        press(page, "t")


def round_trip(page: Page, corpus: Path, folder: Path) -> int:
    """Relabel what is shown, download, index, and ask train what it would train on; returns its videos."""
    page.get_by_label("Search").blur()
    press(page, "V", "j", "r")
    page.keyboard.type("mended")
    press(page, "Enter")
    page.locator(".video").first.focus()
    press(page, "1")
    rows = downloaded(page, folder / "corrections.csv")
    assert len(rows) == MINE
    assert [row["label"] for row in rows].count("mended") == MINE - 1
    manifest = folder / "manifest"
    index_corpus(
        IndexConfig(
            src=str(corpus / "in"),
            out=str(manifest),
            include="mine/*",
            labels=(str(folder / "corrections.csv"),),
            split="train=0.6,val=0.4",
        )
    )
    labels = read_manifest(str(manifest))["label"].to_pylist()
    assert labels.count("mended") == MINE - 1
    assert set(labels) - {"mended"} < set(CLASSES)
    command = [sys.executable, "-m", "tubelet_jobs", "train", "--recipe", "tiny", "--dry-run"]
    command += ["--manifest", str(manifest), "--out", str(folder / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "2 classes" in done.stderr
    return int(json.loads(done.stdout.splitlines()[-1])["videos"])
