"""What people see in MLflow's own pages: the review page among the artifacts, the model and its version."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from playwright.sync_api import Browser, Page, expect
from support import free_port, mlflow_server
from support.review import press
from support.vivit import randomised
from tubelet.clips import ClipSpec
from tubelet.inference.bundle import ModelBundle
from tubelet.review.page import ReviewSummary
from tubelet.tracking import Tracker
from tubelet.tracking.registry import model_link
from tubelet.vivit import ViViT, ViViTConfig

pytestmark = pytest.mark.slow
# Pictures to look at go where this says.
SHOTS = os.environ.get("TUBELET_SCREENSHOTS")
CARD = "# moves\n\nTrained on **12** videos.\n\n| class | top-1 |\n| --- | --- |\n| left | 0.9 |\n"


@pytest.fixture(scope="module")
def logged(
    made: tuple[Path, ReviewSummary], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, str]]:
    """Address of a server, its experiment, and the run that holds a page; the run has a trained parent."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    spec = ClipSpec(frames=8, stride=1, size=32, short_side=36, tubelet=(2, 8, 8))
    model = randomised(ViViT(ViViTConfig.preset("tiny-8x2-model1", classes=2)), 0)
    ModelBundle(model, {"label": ["left", "right"]}, spec).save(folder / "bundle")
    with mlflow_server(folder, port):
        uri = f"http://127.0.0.1:{port}"
        with Tracker.start(uri, "moves", "tiny on moves", description="`tubelet train`") as train:
            train.log_dataset("s3://bucket/manifest", "0123456789abcdef", "train", 12)
            train.log_metrics({"train/loss": 1.5}, 1)
            train.log_metrics({"train/loss": 0.5, "val/top1": 0.75}, 2)
            assert train.log_model(folder / "bundle", "moves", alias="best", card=CARD) == "1"
        with Tracker.start(uri, "moves", "label inbox", description="`tubelet label`") as label:
            label.link_model(model_link("models:/moves/1", train.run_id, uri))
            label.log_metrics({"labelled": 50})
            label.log_text(made[0].read_text("utf-8"), "review.html")
        experiment = mlflow.MlflowClient(uri).get_experiment_by_name("moves").experiment_id
        yield uri, experiment, label.run_id


@pytest.fixture
def screen(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    with browser.new_page(viewport={"width": 1440, "height": 900}) as page:
        yield page


def shoot(page: Page, name: str, folder: Path) -> None:
    page.wait_for_timeout(3000)
    page.screenshot(path=(Path(SHOTS) if SHOTS else folder) / f"mlflow-{name}.png")


def test_the_page_works_among_the_artifacts(
    logged: tuple[str, str, str], screen: Page, tmp_path: Path
) -> None:
    uri, experiment, run = logged
    screen.goto(f"{uri}/#/experiments/{experiment}/runs/{run}/artifacts/review.html")
    frame = screen.frame_locator("iframe")
    expect(frame.locator(".video").first).to_be_visible(timeout=120_000)
    expect(frame.locator("#blocked")).to_contain_text("blocks storage and downloads")
    frame.locator(".video").first.focus()
    press(screen, "x", "j", "a")
    rows = list(csv.DictReader(io.StringIO(frame.locator("#file").input_value())))
    assert sorted(row["label"] == "" for row in rows) == [False, True]
    frame.get_by_label("Label", exact=True).select_option("right")
    assert set(frame.locator(".video b").all_text_contents()) == {"right"}
    shoot(screen, "artifact", tmp_path)


def test_pages_of_the_experiment_run_model_and_version(
    logged: tuple[str, str, str], screen: Page, tmp_path: Path
) -> None:
    uri, experiment, run = logged
    seen = {
        "experiment": (f"experiments/{experiment}/runs", ("tiny on moves",)),
        "run": (f"experiments/{experiment}/runs/{run}", ("label inbox", "tubelet label", "moves")),
        "models": (f"experiments/{experiment}/models", ("moves",)),
        "model": ("models/moves", ("Version 1", "best")),
        "version": ("models/moves/versions/1", ("Trained on", "best")),
    }
    for name, (place, words) in seen.items():
        screen.goto(f"{uri}/#/{place}")
        screen.reload()
        for word in words:
            expect(screen.get_by_text(word).first).to_be_visible(timeout=120_000)
        shoot(screen, name, tmp_path)
