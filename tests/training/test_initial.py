"""`--init` of other libraries' weights: the model follows its source, and random weights are not frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.training import RECIPE, write_corpus
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle
from tubelet.training.build import initial_model
from tubelet.training.optim import freeze_parameters, frozen_names, make_optimiser
from tubelet.training.prepare import INITIAL, prepare, write_record
from tubelet.training.recipe import OptimiserSettings
from tubelet.training.request import Request
from tubelet.vivit import ViViT, ViViTConfig
from tubelet_jobs.recipes import load_recipe

DIM, LAYERS, PATCH = 128, 2, 8


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 4, "val": 2})


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image ViT as a bare file under DINOv2's names: 3x3 positions, four registers, layer scale."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, DIM),
        "register_tokens": (1, 4, DIM),
        "mask_token": (1, DIM),
        "pos_embed": (1, 10, DIM),
        "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
    }
    for block in (f"blocks.{layer}" for layer in range(LAYERS)):
        linear = {
            "attn.qkv": (3 * DIM, DIM),
            "attn.proj": (DIM, DIM),
            "mlp.fc1": (256, DIM),
            "mlp.fc2": (DIM, 256),
        }
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        shapes |= {
            f"{block}.{norm}.{kind}": (DIM,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")
        }
        shapes |= {f"{block}.ls1.gamma": (DIM,), f"{block}.ls2.gamma": (DIM,)}
    shapes |= {"norm.weight": (DIM,), "norm.bias": (DIM,)}
    path = tmp_path_factory.mktemp("image") / "image.safetensors"
    save_file({name: torch.randn(shape, generator=draw) * 0.1 for name, shape in shapes.items()}, path)
    return str(path)


def request(manifest: str, out: Path, *overrides: str, init: str | None, resume: bool = False) -> Request:
    recipe = load_recipe("tiny", [*RECIPE, "size=32", "frames=4", *overrides])
    return Request(recipe=recipe, manifest=manifest, out=str(out), init=init, resume=resume)


def test_a_variant_alone_follows_its_source(manifest: str, image: str, tmp_path: Path) -> None:
    prepared = prepare(request(manifest, tmp_path / "out", "model=model2", init=image))
    config = prepared.config
    assert (config.dim, config.layers, config.heads, config.mlp) == (DIM, LAYERS, 2, 256)
    assert (config.tubelet, config.registers, config.activation) == ((1, PATCH, PATCH), 4, "gelu")
    assert config.mean == (0.485, 0.456, 0.406)
    assert prepared.spec.tubelet == (1, PATCH, PATCH)
    report = initial_model(prepared)
    assert "3x3 interpolated to 4x4 (bicubic, antialias)" in report
    assert "mask_token" in report
    bundle = ModelBundle.load(str(tmp_path / "out" / INITIAL))
    assert bundle.model.encoder.cls is not None
    assert bundle.model.encoder.cls.any()  # the class token too, unlike the authors' code
    overridden = prepare(
        request(manifest, tmp_path / "other", "model=model2", "model_options={heads: 4}", init=image)
    )
    assert overridden.config.heads == 4
    with pytest.raises(UserError, match="takes its size from --init"):
        prepare(request(manifest, tmp_path / "other", "model=model2", init=None))


def test_clips_are_cut_as_the_source_was_trained(manifest: str, image: str, tmp_path: Path) -> None:
    def spec(name: str, *overrides: str, init: str = image) -> ClipSpec:
        return prepare(request(manifest, tmp_path / name, "model=model2", *overrides, init=init)).spec

    followed = spec("one", "size=null", "short_side=null")
    assert (followed.size, followed.short_side, followed.interpolation) == (224, 224, "bicubic")
    asked = spec("two", "short_side=40", "interpolation=bilinear")
    assert (asked.size, asked.short_side, asked.interpolation) == (32, 40, "bilinear")
    # A run that goes on cuts them as it began, also where the source is gone.
    first = prepare(request(manifest, tmp_path / "out", "model=model2", init=image))
    initial_model(first)
    write_record(first, "run-id")
    gone = str(tmp_path / "gone.safetensors")
    again = prepare(request(manifest, tmp_path / "out", "model=model2", init=gone, resume=True))
    assert again.spec == first.spec
    assert first.spec.interpolation == "bicubic"
    model = str(tmp_path / "out" / INITIAL)
    assert ModelBundle.load(model).clip == first.spec
    assert spec("three", "size=null", "short_side=null", init=model).short_side == first.spec.resize_side


def test_the_embedding_alone_may_begin_at_random(manifest: str, image: str, tmp_path: Path) -> None:
    """The three beginnings of the paper's table 1: they differ in the embedding, and in nothing else."""
    weights = {}
    for how in ("central", "average", "random"):
        options = "model_options={tubelet: [2, 8, 8]}"
        chosen = request(
            manifest, tmp_path / how, "model=model1", options, f"init.embedding={how}", init=image
        )
        initial_model(prepare(chosen))
        weights[how] = ModelBundle.load(str(tmp_path / how / INITIAL)).model.state_dict()

    def differing(how: str) -> list[str]:
        return [name for name, value in weights[how].items() if not value.equal(weights["central"][name])]

    assert differing("average") == ["embedding.weight"]
    assert differing("random") == ["embedding.weight", "embedding.bias"]


def test_a_run_goes_on_with_its_model_when_the_source_is_gone(
    manifest: str, image: str, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", tmp_path / "source.safetensors"
    source.write_bytes(Path(image).read_bytes())
    first = prepare(request(manifest, out, "model=model2", init=str(source)))
    initial_model(first)
    write_record(first, "run-id")
    source.unlink()
    again = prepare(request(manifest, out, "model=model2", init=str(source), resume=True))
    assert again.config == first.config
    assert initial_model(again) == ""


def test_what_the_weights_do_not_reach_is_not_frozen(manifest: str, image: str, tmp_path: Path) -> None:
    def start(name: str, *overrides: str) -> None:
        initial_model(prepare(request(manifest, tmp_path / name, *overrides, init=image)))

    with pytest.raises(UserError, match=r"freeze=backbone would keep .*temporal_encoder.*spatial"):
        start("backbone", "model=model2", "freeze=backbone")
    with pytest.raises(UserError, match="freeze=last:1 would keep"):
        start("last", "model=model2", "freeze=last:1")
    with pytest.raises(UserError, match="only Model 2 has a temporal transformer"):
        start("average", "model=average", "freeze=spatial")
    with pytest.raises(UserError, match="needs --init"):
        prepare(request(manifest, tmp_path / "none", "freeze=backbone", init=None))
    start("spatial", "model=model2", "freeze=spatial")
    start("last four", "model=model2", "freeze=last:4")
    start("average head", "model=average", "freeze=backbone")


@pytest.mark.parametrize(
    ("freeze", "learns"),
    [
        ("spatial", ("temporal_encoder.", "head.")),
        ("backbone", ("head.",)),
        ("last:1", ("temporal_encoder.blocks.1.", "temporal_encoder.norm.", "head.")),
        ("last:2", ("temporal_encoder.", "head.")),
        ("last:3", ("temporal_encoder.", "head.", "encoder.blocks.1.", "encoder.norm.")),
        ("none", ("",)),
    ],
)
def test_only_what_is_not_frozen_learns(freeze: str, learns: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    config = ViViTConfig.preset("tiny-8x2-model2", classes=3, temporal_layers=2, dropout=0.5)
    model = ViViT(config).train()
    torch.nn.init.normal_(model.head.weight)
    freeze_parameters(model, freeze)
    assert frozen_names(model, freeze) == {n for n, _ in model.named_parameters() if not n.startswith(learns)}
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes["head"]
    assert modes["encoder.blocks.0.drop"] == (freeze == "none")
    assert modes["temporal_encoder.blocks.1.drop"] == (freeze != "backbone")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = make_optimiser(model, OptimiserSettings(lr=0.5))
    logits = model(
        torch.randint(0, 256, (2, config.frames, config.height, config.width, 3), dtype=torch.uint8)
    )
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    optimiser.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= set(before) - frozen_names(model, freeze)
    assert all(any(name.startswith(part) for name in changed) for part in learns)


def test_freeze_is_written_as_one_of_its_words() -> None:
    with pytest.raises(UserError, match="write none, spatial, backbone, or last:K"):
        load_recipe("tiny", ["freeze=last"])
