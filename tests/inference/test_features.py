"""Features once: what the table holds, what a second run opens, what is done again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import S3Bucket
from support.labelling import read_rows, write_corpus, write_video
from support.vivit import randomised
from tubelet import storage
from tubelet.clips import ClipDecoder, ClipSpec
from tubelet.config import UserError
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.corpus.manifest import read_manifest
from tubelet.corpus.selection import select
from tubelet.inference.bundle import ModelBundle
from tubelet.inference.features import (
    FeatureSettings,
    FeaturesNotWritableError,
    FeatureSpec,
    FeatureSummary,
    compute_features,
    encoder_hash,
    read_features,
)
from tubelet.inference.output import OutputFiles
from tubelet.vivit import ViViT, ViViTConfig

COUNT, BROKEN = 5, 3
SETTINGS = FeatureSettings(max_error_rate=1)


def tiny(variant: str = "average", **changes: Any) -> ModelBundle:
    config = ViViTConfig.preset(f"tiny-8x1-{variant}", classes=2, frames=4, **changes)
    torch.manual_seed(0)
    model = randomised(ViViT(config)).eval()
    clip = ClipSpec(frames=4, stride=None, size=config.height, tubelet=config.tubelet)
    return ModelBundle(model, {"label": ["a", "b"]}, clip)


def no_ray() -> None:
    raise AssertionError("there was something to decode")


def run(manifest: str, bundle: ModelBundle, *, clips: int = 1, **settings: Any) -> FeatureSummary:
    given = {"start_ray": lambda: None, "settings": SETTINGS} | settings
    return compute_features(manifest, bundle, FeatureSpec.of(bundle.model, bundle.clip, clips=clips), **given)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small videos, one of them broken."""
    return write_corpus(tmp_path_factory.mktemp("features") / "videos", COUNT, broken=[BROKEN])


def test_features_are_those_of_the_clips_and_another_run_opens_no_video(
    videos: Path, s3: S3Bucket, tmp_path: Path, ray_cluster: None
) -> None:
    source, manifest = f"{s3.uri}/videos", f"{s3.uri}/manifest"
    storage.upload_dir(videos, source)
    index_corpus(IndexConfig(src=source, out=manifest, workers=1))
    bundle = tiny()
    spec = FeatureSpec.of(bundle.model, bundle.clip, clips=2)
    summary = run(manifest, bundle, clips=2)
    assert (summary.objects, summary.ok, summary.errors, summary.embedded) == (COUNT, COUNT - 1, 1, COUNT)
    found = read_features(f"{manifest}/_features", spec)
    assert found.frames.shape == (2 * (COUNT - 1), 4, 2, 64)
    assert found.frames.dtype == np.float32
    places = list(zip(found.keys, found.segments.tolist(), found.clip_index.tolist(), strict=True))
    assert places == sorted(places)
    assert found.clip_index.tolist() == [0, 1] * (COUNT - 1)
    # As the model itself sees the same clips.
    decoder = ClipDecoder(bundle.clip, views=(2, 1))
    requests = {"key": found.keys, "uri": found.uris, "etag": found.etags, "size": [-1] * len(found.keys)}
    decoded = decoder({name: np.array(column, object) for name, column in requests.items()})
    decoder.close()
    clips = torch.from_numpy(decoded["tubelets"][np.arange(len(found.keys)), found.clip_index])
    with torch.inference_mode():
        frames, logits = torch.from_numpy(found.frames), bundle.model(clips)
        torch.testing.assert_close(bundle.model.classify_frames(frames), logits, atol=1e-5, rtol=1e-5)
    rows = read_rows(f"{manifest}/_features/{spec.name}")
    (failed,) = [row for row in rows if row["status"] == "error"]
    assert (failed["clip"], failed["error_code"]) == (0, "open_error")
    assert {row["model"] for row in rows} == {encoder_hash(bundle.model)}

    # Other labels, a subset of the videos, another head: nothing is opened, nothing is even started.
    labels = tmp_path / "labels.csv"
    paths = read_manifest(manifest)["path"].to_pylist()
    labels.write_text("path,label\n" + "".join(f"{path},a\n" for path in paths[:3]))
    index_corpus(IndexConfig(src=source, out=manifest, workers=1, update=True, labels=str(labels)))
    other = tiny("model2", classifier="gap", class_token=True)
    other.model.load_state_dict(
        {n: v for n, v in bundle.model.state_dict().items() if n.startswith(("encoder.", "embedding."))},
        strict=False,
    )
    again = run(manifest, other, clips=2, start_ray=no_ray, select=lambda rows: select(rows, labelled=True))
    assert (again.objects, again.already_done, again.embedded) == (3, 3, 0)


def test_a_changed_object_is_done_again_and_the_rest_is_not(tmp_path: Path, ray_cluster: None) -> None:
    source, manifest, bundle = write_corpus(tmp_path / "videos", 3), str(tmp_path / "manifest"), tiny()
    index_corpus(IndexConfig(src=str(source), out=manifest, workers=1))
    spec = FeatureSpec.of(bundle.model, bundle.clip)
    assert run(manifest, bundle).embedded == 3
    before = read_features(f"{manifest}/_features", spec)
    write_video(source / "v00001.mp4", 77)
    index_corpus(IndexConfig(src=str(source), out=manifest, workers=1, update=True))
    assert run(manifest, bundle).embedded == 1
    after = read_features(f"{manifest}/_features", spec)
    assert after.keys == before.keys
    changed = [key for i, key in enumerate(after.keys) if after.etags[i] != before.etags[i]]
    differing = [after.keys[i] for i in range(3) if not np.array_equal(after.frames[i], before.frames[i])]
    assert changed == differing
    assert len(changed) == 1
    rows = read_manifest(manifest)
    assert [clips.tolist() for clips in before.clips_of(rows)].count([]) == 1
    assert sorted(i for clips in after.clips_of(rows) for i in clips.tolist()) == [0, 1, 2]
    # What the store did is no verdict: such a row is tried again by the same command.
    files = OutputFiles(f"{manifest}/_features/{spec.name}")
    rewrite(files, after.keys[0], status="error", error_code="timeout", error="cut off", attempts=1)
    assert read_features(f"{manifest}/_features", spec).keys == after.keys[1:]
    assert run(manifest, bundle).embedded == 1
    assert np.array_equal(read_features(f"{manifest}/_features", spec).frames, after.frames)


def rewrite(files: OutputFiles, key: str, **changes: Any) -> None:
    """Change the row of ``key`` in the parts of a table."""
    import io

    import pyarrow.parquet as pq

    def changed(data: bytes) -> bytes:
        table = pq.read_table(io.BytesIO(data))
        at = [one == key for one in table["key"].to_pylist()]
        for name, value in changes.items():
            values = [value if mine else old for mine, old in zip(at, table[name].to_pylist(), strict=True)]
            column = table.schema.get_field_index(name)
            table = table.set_column(column, table.schema.field(name), pa.array(values, table[name].type))
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()

    for name in files.names():
        if name.startswith("part-"):
            files.rewrite(name, changed)


def test_the_encoder_is_named_by_what_frames_features_depend_on() -> None:
    model = tiny().model
    name = encoder_hash(model)
    for same in ({"temporal_pool": "mean_diff"}, {"classifier": "token_gap"}):
        assert encoder_hash(tiny(**same).model) == name
    changed = tiny().model
    with torch.no_grad():
        changed.encoder.blocks[1].mlp.fc2.bias[3] += 1e-3
    assert encoder_hash(changed) != name
    assert encoder_hash(tiny(std=(1.0, 1.0, 1.0)).model) != name
    spec = FeatureSpec.of(model, tiny().clip)
    assert re.fullmatch(r"[0-9a-f]{16}", spec.name)
    assert FeatureSpec.of(model, tiny().clip, clips=2).name != spec.name
    with pytest.raises(UserError, match="no features of single frames"):
        FeatureSpec.of(tiny("model1").model, tiny().clip)


def test_a_place_that_takes_no_features_is_named_with_the_flag(videos: Path, tmp_path: Path) -> None:
    manifest = str(tmp_path / "manifest")
    index_corpus(IndexConfig(src=str(videos), out=manifest, workers=1))
    (tmp_path / "manifest" / "_features").write_text("a file")
    with pytest.raises(FeaturesNotWritableError, match="set --features to a writable place"):
        run(manifest, tiny(), start_ray=no_ray)
