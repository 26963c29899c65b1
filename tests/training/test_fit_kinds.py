"""Whole fits of the kinds that are not one label a video: two heads, several labels, from given weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.training import moving_square, write_video
from tubelet.corpus.manifest import key_of, read_manifest, schema_with, write_manifest
from tubelet.evaluation.evaluate import EvaluationConfig, evaluate_model
from tubelet.inference.bundle import ModelBundle
from tubelet.training.build import initial_model
from tubelet.training.fit import fit
from tubelet.training.prepare import prepare
from tubelet.training.request import Request
from tubelet_jobs.recipes import load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("ray_cluster")]

RECIPE = (
    "frames=8",
    "stride=1",
    "size=32",
    "short_side=36",
    "batch=16",
    "max_steps=150",
    "workers=2",
    "decode_workers=2",
    "flip=0",
    "checkpoint_every=150",
)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Verbs are the motion, nouns the look: a light or a dark square goes left or right."""
    folder = tmp_path_factory.mktemp("kitchen")
    for split, count in (("train", 24), ("test", 10)):
        for i, verb, noun in itertools.product(range(count), ("left", "right"), ("light", "dark")):
            clip = moving_square(-1 if verb == "left" else 1, 5 * i)
            path = folder / "videos" / split / f"{verb} {noun} {i:02d}.mp4"
            write_video(path, clip if noun == "light" else 255 - clip)
    return folder


def _manifest(folder: Path, name: str, **kinds: bool) -> str:
    """A manifest of all videos; ``kinds``: its label columns, and whether they hold lists."""
    schema = schema_with(kinds) if kinds else schema_with()
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "videos").rglob("*.mp4")):
        relative = path.relative_to(folder / "videos").as_posix()
        verb, noun, _ = path.stem.split()
        labels = {"label_verb": verb, "label_noun": noun, "label": [verb, noun]}
        rows.append(
            {
                **dict.fromkeys(schema.names),
                "key": key_of(relative),
                "segment": 0,
                "uri": str(path),
                "path": relative,
                "size": path.stat().st_size,
                "status": "ok",
                "split": path.parent.name,
                "frames": 16,
                **{column: labels[column] for column in kinds},
            }
        )
    write_manifest(pa.Table.from_pylist(rows, schema), str(folder / name))
    return str(folder / name)


def _fit(manifest: str, out: Path, *overrides: str, init: str | None = None) -> tuple[ModelBundle, str]:
    recipe = load_recipe("tiny", [*RECIPE, *overrides])
    request = Request(
        recipe=recipe,
        manifest=manifest,
        out=str(out),
        init=init,
        tracking_uri=f"sqlite:///{out.parent}/mlflow.db",
    )
    prepared = prepare(request)
    report = initial_model(prepared)
    fit(prepared, report)
    return ModelBundle.load(out), report


def test_two_heads_and_a_joint_action(kitchen: Path, tmp_path: Path) -> None:
    manifest = _manifest(kitchen, "two heads", label_verb=False, label_noun=False)
    bundle, _ = _fit(manifest, tmp_path / "run", "heads=[verb, noun]")
    found = evaluate_model(bundle, read_manifest(manifest), "test", EvaluationConfig(workers=2))
    print({name: round(value, 3) for name, value in found.scores.items()})
    assert bundle.labels == {"verb": ["left", "right"], "noun": ["dark", "light"]}
    assert found.scores["action_top1"] >= 0.9


def test_several_labels_a_video(kitchen: Path, tmp_path: Path) -> None:
    manifest = _manifest(kitchen, "lists", label=True)
    bundle, _ = _fit(manifest, tmp_path / "run", "multilabel=true")
    found = evaluate_model(bundle, read_manifest(manifest), "test", EvaluationConfig(workers=2))
    print({name: round(value, 3) for name, value in found.scores.items()})
    assert bundle.multilabel
    assert found.scores["map"] >= 0.95


def test_starts_from_a_model_of_other_classes_and_frames(kitchen: Path, tmp_path: Path) -> None:
    """The body comes from the first model, the head is new; what happened to each weight is told."""
    first = _manifest(kitchen, "two heads", label_verb=False, label_noun=False)
    _fit(first, tmp_path / "first", "heads=[verb, noun]", "max_steps=2", "checkpoint_every=2")
    second = _manifest(kitchen, "lists", label=True)
    overrides = ("multilabel=true", "frames=16", "max_steps=2", "checkpoint_every=2")
    bundle, report = _fit(second, tmp_path / "second", *overrides, init=str(tmp_path / "first"))
    print(report)
    assert bundle.clip.frames == 16
    for word in ("loaded", "adapted", "initialised"):
        assert word in report.lower()
