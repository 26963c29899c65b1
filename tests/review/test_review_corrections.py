"""Corrections: said by key, kept, undone, downloaded; on a page alone, inside another page, and served."""

from __future__ import annotations

import csv
import html
import http.client
import io
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from support import S3Bucket
from support.labelling import write_video
from support.review import VIDEOS, downloaded, press, row_of, wait_for_video, write_rows
from tubelet import storage
from tubelet.config import UserError, load_settings
from tubelet.inference.output import parquet_bytes
from tubelet.inference.schema import RowShape, table_of
from tubelet.inference.sink import part_name
from tubelet.review import page as page_module
from tubelet.review.config import ReviewConfig, ServeConfig
from tubelet.review.page import ReviewSummary, review
from tubelet.review.server import serving


def test_corrections_by_key(page: Page) -> None:
    """Accept, relabel by number and by name, reject, note; then the file."""
    page.get_by_label("Your name").fill("Zoë")
    page.locator("main").click(position={"x": 5, "y": 5})
    press(page, "j")
    keys = [page.evaluate("document.activeElement.dataset.key")]
    press(page, "a")
    keys.append(page.evaluate("document.activeElement.dataset.key"))
    press(page, "2")
    keys.append(page.evaluate("document.activeElement.dataset.key"))
    press(page, "x")
    keys.append(page.evaluate("document.activeElement.dataset.key"))
    press(page, "r")
    page.keyboard.type('jump, "high"')
    press(page, "Enter", "k", "n")
    page.keyboard.type("blurred\ttoo dark")
    press(page, "Enter")
    rows = {row["key"]: row for row in downloaded(page)}
    assert set(rows) == set(keys)
    assert [rows[key]["label"] for key in keys[2:]] == ["", 'jump, "high"']
    assert rows[keys[0]]["label"] == page.locator(f"[data-key={keys[0]}] b").inner_text()
    assert rows[keys[1]]["label"] == page.locator(f"[data-key={keys[1]}] .top li span").nth(2).inner_text()
    assert {row["by"] for row in rows.values()} == {"Zoë"}
    assert all(row["at"].endswith("Z") and row["previous"] and row["window"] == "0" for row in rows.values())
    assert expect(page.locator("#progress")).to_contain_text(f"4 of {VIDEOS} reviewed") is None


def test_corrections_outlive_the_page_and_are_undone(page: Page) -> None:
    press(page, "j", "a", "x")
    page.reload()
    expect(page.locator("#progress")).to_contain_text("2 of")
    assert page.locator(".video[data-done]").count() == 2
    press(page, "j", "x", "u")
    assert page.locator(".video").first.get_attribute("data-done") == "accept"
    page.get_by_label("Reviewed").select_option("reject")
    assert page.locator("#shown").inner_text() == f"1 of {VIDEOS}"


def test_several_at_once(page: Page) -> None:
    page.get_by_label("Label", exact=True).select_option("right")
    count = int(page.locator("#shown").inner_text().split()[0])
    page.get_by_label("Label", exact=True).blur()
    press(page, "V", "j", "r")
    page.keyboard.type("left, really")
    press(page, "Enter")
    rows = downloaded(page)
    assert len(rows) == count > 5
    assert {row["label"] for row in rows} == {"left, really"}
    press(page, "u")
    assert downloaded(page) == []


def test_a_note_alone_decides_nothing(page: Page) -> None:
    press(page, "j", "n")
    page.keyboard.type("look again")
    press(page, "Enter")
    assert downloaded(page) == []
    expect(page.locator("#progress")).to_contain_text("1 note without a decision (not in the file)")


def test_inside_another_page_corrections_are_shown_to_copy(
    made: tuple[Path, ReviewSummary], browser: Browser, tmp_path: Path
) -> None:
    """As MLflow shows artifacts: scripts, and neither storage nor downloads."""
    outer = tmp_path / "outer.html"
    inner = html.escape(made[0].read_text("utf-8"), quote=True)
    outer.write_text(
        f'<iframe sandbox="allow-scripts" style="width:90vw;height:90vh" srcdoc="{inner}"></iframe>'
    )
    with browser.new_page() as page:
        page.goto(outer.as_uri())
        frame = page.frame_locator("iframe")
        expect(frame.locator("#blocked")).to_contain_text("blocks storage and downloads")
        frame.locator(".video").first.focus()
        press(page, "x")
        rows = list(csv.DictReader(io.StringIO(frame.locator("#file").input_value())))
        assert len(rows) == 1
        assert rows[0]["label"] == ""
        assert frame.locator("#download").is_hidden()


def test_many_rows_have_their_pictures_beside(
    predictions: Path, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "ALONE_ROWS", 22)
    out = tmp_path / "page & more.html"
    config = ReviewConfig(predictions=str(predictions), out=str(out), frames=2, height=32)
    for _ in range(2):
        summary = review(config)
    names = sorted(path.name for path in (tmp_path / "page & more_files").iterdir())
    assert [name.rpartition("-")[2] for name in names] == ["22.html", "00000.jpg", "00001.jpg", "00002.jpg"]
    with browser.new_page() as page:
        page.goto(out.as_uri())
        for _ in range(100):  # a key that comes while the page grows moves nothing
            page.keyboard.press("End")
            if page.locator(".video").count() == VIDEOS:
                break
            page.wait_for_timeout(100)
        expect(page.locator(".video")).to_have_count(VIDEOS)
        assert page.locator("div.strip").count() == VIDEOS - 1
        loaded = page.evaluate(
            """() => Promise.all([...new Set([...document.querySelectorAll('div.strip')].map(
                 strip => getComputedStyle(strip).backgroundImage.slice(5, -2)))].map(
                 url => new Promise(done => { const i = new Image(); i.onload = () => done(i.naturalHeight);
                                              i.onerror = () => done(0); i.src = url; })))"""
        )
        assert sorted(loaded) == [32 * count for count in (10, 19, 20)]
        page.goto(Path(summary.alone).as_uri())
        assert page.locator("img.strip").count() in (21, 22)
        assert "first 22 of the page" in page.locator(".note").first.inner_text()


def test_links_of_the_store_are_signed_only_when_asked_for(
    s3: S3Bucket, browser: Browser, tmp_path: Path
) -> None:
    uri = f"{s3.uri}/a + b.mp4"
    storage.upload_file(write_video(tmp_path / "v.mp4", 1, fast=True), uri)
    out = write_rows(tmp_path / "out", [row_of(1, uri)])
    plain = review(ReviewConfig(predictions=str(out), out=str(tmp_path / "p.html"), frames=2))
    assert "X-Amz" not in Path(plain.out).read_text("utf-8")
    signed = review(ReviewConfig(predictions=str(out), out=str(tmp_path / "s.html"), frames=2, presign="24h"))
    with browser.new_page() as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(signed.out).as_uri())
        assert requests == [Path(signed.out).as_uri()]
        press(page, "j", "p")
        wait_for_video(page, 1)
        assert "X-Amz-Expires=86400" in requests[-1]
    with pytest.raises(UserError, match="24h"):
        load_settings(ReviewConfig, {"predictions": "x", "presign": "8d"})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("served")
    video = write_video(folder / "v.mp4", 1, frames=30)
    out = write_rows(folder / "out", [row_of(i, str(video)) for i in range(4)])
    config = ReviewConfig(predictions=str(out), frames=2, workers=1)
    with serving(config, ServeConfig()) as (server, address):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield address, out
        server.shutdown()
        thread.join()


def ask(
    address: str, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_nothing_is_served_without_the_token(served: tuple[str, Path]) -> None:
    address, _ = served
    for path in ("/", "/video/k0001/0", "/corrections", "/page_files/x.jpg", "/?token=wrong"):
        assert ask(address, path)[0] == 403
    assert ask(address, "/corrections", "POST", "[]", Cookie="tubelet-review=wrong")[0] == 403


def test_served_videos_come_in_ranges(served: tuple[str, Path]) -> None:
    address, out = served
    cookie = "tubelet-review=" + address.rpartition("=")[2]
    whole = (out.parent / "v.mp4").read_bytes()
    status, headers, body = ask(address, "/video/k0001/0", Cookie=cookie)
    assert (status, headers["Content-Type"], body) == (200, "video/mp4", whole)
    status, headers, body = ask(address, "/video/k0001/0", Cookie=cookie, Range="bytes=100-299")
    assert (status, headers["Content-Range"], body) == (206, f"bytes 100-299/{len(whole)}", whole[100:300])
    assert ask(address, "/video/other/0", Cookie=cookie)[0] == 404
    status, _, body = ask(address, "/corrections", "POST", '[{"key": 1}]', Cookie=cookie)
    assert (status, body[:14]) == (400, b"no corrections")


def test_what_is_said_while_the_served_page_loads_stays(served: tuple[str, Path], browser: Browser) -> None:
    """The list of what was said before arrives after a key was pressed, and does not know of it."""
    held: list[Route] = []

    def answer(route: Route) -> None:
        if route.request.method == "GET":
            held.append(route)
        else:
            route.continue_()

    with browser.new_page() as page:
        page.route("**/corrections", answer)
        page.goto(served[0])
        press(page, "j", "x")
        expect(page.locator("#progress")).to_contain_text("1 of 4 reviewed · saved")
        with page.expect_response("**/corrections"):
            held[0].fulfill(json=[])
        page.wait_for_timeout(100)
        expect(page.locator("#progress")).to_contain_text("1 of 4 reviewed · saved")
        press(page, "u")
        expect(page.locator("#progress")).to_contain_text("0 of 4 reviewed · saved")


def test_served_corrections_are_kept_as_they_are_made(served: tuple[str, Path], browser: Browser) -> None:
    address, out = served
    kept = out / "_review/corrections.csv"
    with browser.new_page() as page:
        page.goto(address)
        assert "token" not in page.url
        press(page, "j", "x", "p")
        wait_for_video(page, 2)
        press(page, "j", "a")
        expect(page.locator("#progress")).to_contain_text("2 of 4 reviewed · saved")
        rows = list(csv.DictReader(io.StringIO(kept.read_text("utf-8"))))
        assert sorted(row["label"] == "" for row in rows) == [False, True]
        # What another person says of another row stays, and is there when the page is opened again.
        said = [{"key": "k0003", "window": 0, "said": {"action": "relabel", "labels": {"label": "new"}}}]
        cookie = "tubelet-review=" + address.rpartition("=")[2]
        assert ask(address, "/corrections", "POST", json.dumps(said), Cookie=cookie)[0] == 204
        page.reload()
        expect(page.locator("#progress")).to_contain_text("3 of 4 reviewed · saved")
        assert len(list(csv.DictReader(io.StringIO(kept.read_text("utf-8"))))) == 3


def test_the_command_prints_an_address_that_opens_the_page(tmp_path: Path) -> None:
    out = write_rows(tmp_path / "out", [row_of(1, str(write_video(tmp_path / "v.mp4", 1)))])
    command = [Path(sys.executable).with_name("tubelet"), "review", str(out), "--serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(line.split()[-1] for line in server.stderr if line.startswith("open "))
            visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with visitor.open(address, timeout=30) as page:
                assert b"<html" in page.read()
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 130
        finally:
            server.kill()


def test_served_search_goes_over_all_rows(browser: Browser, tmp_path: Path) -> None:
    """Four rows are on the page; what is most like one is among thirty, and can be corrected as well."""
    video, draw = str(write_video(tmp_path / "v.mp4", 1)), np.random.default_rng(0)
    vectors = draw.normal(0, 1, (30, 8))
    rows = [row_of(i + 1, video) | {"embedding": vector} for i, vector in enumerate(vectors)]
    schema, out = RowShape(embedding="float32", embedding_dim=8).schema(), tmp_path / "out"
    out.mkdir()
    for number in range(2):
        part = parquet_bytes(table_of(rows[15 * number : 15 * number + 15], schema))
        (out / part_name(number)).write_bytes(part)
    config = ReviewConfig(predictions=str(out), limit=4, frames=2, workers=1)
    for before in (0, 1):
        with serving(config, ServeConfig()) as (server, address), browser.new_page() as page:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                page.goto(address)
                press(page, "j", "m")
                expect(page.locator(".video")).to_have_count(30)
                shown = page.locator(".video").evaluate_all("all => all.map(one => one.dataset.key)")
                centred = vectors - vectors.mean(axis=0)
                unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
                order = np.argsort(-(unit @ unit[int(shown[0][1:]) - 1]))
                assert shown == [f"k{i + 1:04d}" for i in order]
                assert page.locator("img.strip").count() == 30
                last = page.locator(".video").nth(29 - before)
                last.focus()
                press(page, "x")
                expect(page.locator("#progress")).to_contain_text("saved")
            finally:
                server.shutdown()
                thread.join()
    # Said of rows that the second page did not have until it was asked, and of one more.
    assert len((out / "_review/corrections.csv").read_text("utf-8").splitlines()) == 3
