"""A video classifier of Hugging Face is a MODEL: from its folder, or by name from a hub's cache, offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle

NAMES = ["run", "walk", "größer"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VideoMAE with every weight drawn, as its library saves it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_frames=4,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    model = transformers.VideoMAEForVideoClassification(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    folder = tmp_path_factory.mktemp("videomae")
    model.save_pretrained(folder)
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 36}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_folder_gives_its_own_logits_on_a_clip(videomae: Path) -> None:
    import transformers

    bundle = ModelBundle.load(videomae)
    assert bundle.labels == {"label": NAMES}
    assert bundle.clip == ClipSpec(frames=4, stride=4, size=32, short_side=36, tubelet=(2, 8, 8))
    assert bundle.model.config.mean == pytest.approx(MEAN)
    assert bundle.model.config.std == pytest.approx(STD)
    assert bundle.identity == ModelBundle.load(str(videomae)).identity
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), dtype=np.uint8)
    ours = bundle.model(torch.from_numpy(clip))
    pixels = (torch.from_numpy(clip) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(videomae).eval()
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels.permute(0, 1, 4, 2, 3)).logits
    torch.testing.assert_close(ours.detach(), wanted, atol=1e-4, rtol=1e-4)


def test_name_is_found_in_a_local_hub_cache(
    videomae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub_cache(videomae, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    bundle = ModelBundle.load("hf:someone/videomae")
    assert bundle.identity == ModelBundle.load(videomae).identity
    assert bundle.source == "hf:someone/videomae"
    with pytest.raises(UserError, match=r"hf:someone/other: cannot be fetched"):
        ModelBundle.load("hf:someone/other")


def hub_cache(folder: Path, cache: Path) -> None:
    """The model as huggingface_hub keeps it."""
    repository = cache / "models--someone--videomae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def test_what_is_no_video_classifier_says_what_it_is(videomae: Path, tmp_path: Path) -> None:
    def changed(**values: object) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(videomae, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return folder

    with pytest.raises(UserError, match=r"model_type='dinov2' is no video classifier.*train --init"):
        ModelBundle.load(changed(model_type="dinov2"))
    with pytest.raises(UserError, match="hidden_act='relu'"):
        ModelBundle.load(changed(hidden_act="relu"))
    bare = changed()
    from safetensors.torch import load_file, save_file

    state = {n: v for n, v in load_file(bare / "model.safetensors").items() if not n.startswith("classifier")}
    save_file(state, bare / "model.safetensors")
    with pytest.raises(UserError, match="has no classifier; train one on top of it"):
        ModelBundle.load(bare)
