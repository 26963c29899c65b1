"""`tubelet embed`: a table of one row per video that common tools read, of models and of image ViTs."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from support import S3Bucket
from support.labelling import CLASSES, tiny_bundle, write_corpus
from support.timm import load_timm
from tubelet import storage
from tubelet.clips import ClipDecoder, ClipSpec
from tubelet.config import UserError, load_settings
from tubelet.inference.embedding import EmbedConfig, EmbedJob
from tubelet.inference.encoders import ClipChoice, load_encoder

COUNT, BROKEN = 4, 2


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small videos, one of them broken."""
    return write_corpus(tmp_path_factory.mktemp("embedding") / "videos", COUNT, broken=[BROKEN])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image ViT as a bare file."""
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 1}
    torch.manual_seed(0)
    theirs = load_timm().create_model(
        "vit_small_patch14_dinov2", pretrained=False, num_classes=0, **arguments
    )
    path = tmp_path_factory.mktemp("image") / "image.safetensors"
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, path)
    return str(path)


def config(source: Path, model: str, out: object, **more: object) -> EmbedConfig:
    given = {"source": str(source), "model": model, "out": str(out), "max_error_rate": 1, **more}
    return load_settings(EmbedConfig, given)


def no_ray() -> None:
    raise AssertionError("there was something to decode")


def test_one_row_per_video_for_pandas_and_duckdb(
    videos: Path, image: str, tmp_path: Path, ray_cluster: None
) -> None:
    settings = config(videos, image, tmp_path / "out", size=28, frames=2)
    job = EmbedJob(settings)
    assert job.bundle.clip == ClipSpec(
        frames=2, stride=None, size=28, short_side=28, tubelet=(1, 7, 7), interpolation="bicubic"
    )
    assert any("ImageNet" in note for note in job.notes)
    summary = job.run(lambda: None)
    assert (summary.objects, summary.ok, summary.errors) == (COUNT, COUNT - 1, 1)

    frame = pd.read_parquet(tmp_path / "out").sort_values("key")
    good = frame[frame["status"] == "ok"]
    found = np.stack(good["embedding"])
    assert found.shape == (COUNT - 1, 64)
    decoder, bundle = ClipDecoder(job.bundle.clip), load_encoder(image, choice=ClipChoice(2, None, 28))[0]
    asked = {name: good[name].to_numpy() for name in ("key", "uri", "etag")} | {
        "size": np.full(len(good), -1)
    }
    clips = torch.from_numpy(decoder(asked)["tubelets"][:, 0])
    decoder.close()
    with torch.inference_mode():
        wanted = bundle.model(clips, features=True)[1].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    nearest = duckdb.sql(
        f"""with e as (select * from '{tmp_path}/out/*.parquet' where status = 'ok')
        select a.key, list_cosine_similarity(a.embedding, a.embedding) as own,
               max(list_cosine_similarity(a.embedding, b.embedding)) as other
        from e a join e b on a.key <> b.key group by all order by a.key"""
    ).df()
    assert nearest["key"].tolist() == good["key"].tolist()
    np.testing.assert_allclose(nearest["own"], 1, atol=1e-5)
    assert (nearest["other"] < 1 + 1e-5).all()

    again = EmbedJob(settings).run(no_ray)
    assert (again.embedded, again.already_done, again.ok) == (0, COUNT, COUNT - 1)
    with pytest.raises(UserError, match=r"rows made otherwise: model .*\nChoose another --out$"):
        EmbedJob(config(videos, image, tmp_path / "out", size=35, frames=2)).run(no_ray)


def test_the_output_of_public_videos_is_written_with_credentials(
    videos: Path, tmp_path: Path, s3: S3Bucket
) -> None:
    model, out = str(tiny_bundle(tmp_path / "model")), f"{s3.uri}/out"
    with pytest.raises(AssertionError, match="something to decode"):
        EmbedJob(config(videos, model, out, storage={"anonymous": True})).run(no_ray)
    assert {"_manifest", "_output.json", "_plan"} <= set(storage.list_names(out))


def test_a_models_own_embedding_is_what_label_keeps(videos: Path, tmp_path: Path, ray_cluster: None) -> None:
    from tubelet.inference.local import LocalModel

    model = str(tiny_bundle(tmp_path / "model"))
    job = EmbedJob(config(videos, model, tmp_path / "out", clips=2, type="float16"))
    assert job.notes == ()
    assert job.bundle.labels == {"label": CLASSES}
    assert job.run(lambda: None).ok == COUNT - 1
    rows = pd.read_parquet(tmp_path / "out").sort_values(["key", "clip"])
    good = rows[rows["status"] == "ok"]
    assert good["clip"].tolist() == [0, 1] * (COUNT - 1)
    with LocalModel(load_encoder(model)[0]) as local:
        uri = good["uri"].iloc[0]
        (row,) = local.predict(uri, views=(2, 1), embedding="float32")
    mean = np.stack(good["embedding"][good["uri"] == uri]).astype(np.float32).mean(0)
    np.testing.assert_allclose(mean, row["embedding"], atol=4e-3)
    with pytest.raises(UserError, match="no features of single frames"):
        EmbedJob(config(videos, model, tmp_path / "other", per_frame=True))
    with pytest.raises(UserError, match=r"--frames: .* says itself how clips are cut"):
        EmbedJob(config(videos, model, tmp_path / "other", frames=4))


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"no weights at all")
    for name, what in ((str(noise), "not a safetensors file"), (str(tmp_path / "gone"), "no such file")):
        with pytest.raises(UserError, match=what):
            load_encoder(name)
