"""Where a model's first weights come from: `init_from` takes anything that `tubelet train --init` accepts."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tubelet.vivit import families, preprocessing, timm_models
from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.files import is_ours, load_model
from tubelet.vivit.foreign import from_npz, from_weights
from tubelet.vivit.huggingface import IMAGENET, config_from_huggingface, read_json, read_weights
from tubelet.vivit.model import ViViT
from tubelet.vivit.preprocessing import Preprocessing
from tubelet.vivit.report import LoadReport
from tubelet.vivit.scenic import read_arrays, to_scenic
from tubelet.vivit.transfer import InitOptions, Source, transfer

if TYPE_CHECKING:
    import numpy as np

    Weights = str | os.PathLike[str] | ViViT | Mapping[str, "np.ndarray[Any, Any] | Tensor"]

# Of a source's settings, those that a model of any size must share to compute the same from its weights.
SHARED_SETTINGS = (
    *("activation", "layer_norm_eps", "mean", "std"),
    *("class_token", "registers", "embed_norm", "fc_norm", "rope"),
)
# How transformers resizes the positions of a frame; bicubic where not said.
_RESIZE = {"vivit": "corners", "dinov2_with_registers": "bicubic_antialias"}


@dataclass(frozen=True)
class Pretrained:
    """Weights as they were found, before a model is known that they are for.

    Attributes:
        name: For people.
        fields: Fields of `ViViTConfig` that the source decides.
        weights: Of a torch ViT; else `arrays` are the original's.
        arrays: Under the original's names.
        grid: Tokens along time, height and width.
        resize: How the source's library resizes positions.
        notes: What was assumed.
        known: Whether a config said what `fields` holds beyond shapes.
        preprocessing: How the source's library makes an image its input, where that is said.
    """

    name: str
    fields: Mapping[str, Any]
    weights: families.Weights | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int, int] | None = None
    resize: str = "corners"
    notes: tuple[str, ...] = ()
    known: bool = False
    preprocessing: Preprocessing | None = None

    def settings(self, variant: str) -> dict[str, Any]:
        """Fields for a model of this variant and of any size: what the weights mean, and preprocessing."""
        found = {name: self.fields[name] for name in SHARED_SETTINGS if self.fields.get(name)}
        pool = self.fields.get("classifier")
        without_cls = variant in ("model3", "model4") and pool in ("token", "0")
        if pool == "map" or (self.weights is not None and pool and not without_cls):
            found["classifier"] = pool
        return found

    def size(self) -> dict[str, Any]:
        """Fields that make a model as large as the source, of its patches and tubelets."""
        return {name: self.fields[name] for name in _SIZE if name in self.fields}

    def for_model(self, config: ViViTConfig) -> Source:
        """The source as a model of this config takes it.

        Raises:
            ValueError: The number of heads differs, which no shape shows.
        """
        heads = self.fields.get("heads")
        if self.known and self.weights is not None and heads != config.heads:
            raise ValueError(
                f"{self.name}: has {heads} attention heads, the model {config.heads}; set heads={heads}"
            )
        if self.weights is None:
            return Source(self.name, self.arrays, grid=self.grid, notes=self.notes)
        arrays, names = from_weights(self.weights, config.heads)
        notes = (*self.notes, *self.weights.notes)
        notes += _differences(self.fields, config) if self.known else ()
        parts = self.weights.parts | {"rope": self._rope()}
        sine = self.weights.has_sine_positions
        left_over = self.weights.left_over
        return Source(self.name, arrays, left_over, self.grid, notes, names, parts, self.resize, sine)

    def _rope(self) -> float | None:
        assert self.weights is not None
        return self.fields.get("rope", 100.0) if self.weights.has_rotary_positions else None


_SIZE = ("tubelet", "dim", "layers", "heads", "mlp")


def init_from(model: ViViT, source: Weights, **options: Any) -> LoadReport:
    """Fill `model` in place; the report says what became of every weight of both.

    Args:
        model: Of any variant; its config must have the parts that the source has (`read_pretrained` tells).
        source: A `ViViT`; a file that `save_model` wrote, or a folder with it as `model.safetensors`; a
            folder of Hugging Face (ViViT, VideoMAE, ViT, DeiT, MAE, DINOv2, DINOv3, CLIP, SigLIP) or timm;
            the original's `.npz` (image or video); a state dict or arrays by name, or a file of them;
            `timm:NAME` or `hf:NAME`, from their caches or fetched.
        options: Those of `InitOptions`.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The weights do not fit; what would.
        RuntimeError: A package or the network is missing.
    """
    return transfer(model, read_source(source, model.config), InitOptions(**options))


def init_from_image(model: ViViT, source: Weights, **options: Any) -> LoadReport:
    """`init_from` for an image ViT (timm, Hugging Face, original `.npz`); a video model is refused."""
    found = read_source(source, model.config)
    kernel = found.arrays.get("embedding/kernel")
    if (kernel is not None and kernel.dim() == 5 and kernel.shape[0] > 1) or _has_time(found):
        raise ValueError(f"{found.name}: a video model, not an image ViT; use init_from_vivit")
    return transfer(model, found, InitOptions(**options))


def init_from_vivit(
    model: ViViT, source: Weights, *, grid: tuple[int, int, int] | None = None, **options: Any
) -> LoadReport:
    """`init_from` for another ViViT: another clip length, size, variant or head.

    `grid`: the source's tokens along time, height and width, needed where it is bare arrays of joint
    positions that do not fit (Model 2's, and files with a config, say it themselves).
    """
    found = read_source(source, model.config)
    if grid is not None:
        found = dataclasses.replace(found, grid=grid)
    return transfer(model, found, InitOptions(**options))


def read_source(source: Weights, config: ViViTConfig) -> Source:
    """Weights of any kind under the original's names; `config` is that of the model they are for."""
    return read_pretrained(source).for_model(config)


def read_pretrained(source: Weights) -> Pretrained:
    """Weights of any kind that `init_from` takes, and what their source says of them.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: Not the weights of a ViT or ViViT that we know; what it is instead.
        RuntimeError: A package or the network is missing.
    """
    if isinstance(source, ViViT):
        return _of_ours(source, f"a {source.config.variant}")
    if isinstance(source, Mapping):
        return _of_arrays(source, "the given arrays")
    name = os.fspath(source)
    if name.startswith("timm:"):
        state, fields, said = _fetch(name, lambda: timm_models.fetch(name[5:]))
        return _of_weights(state, name, fields, said, resize="bicubic_antialias")
    path = fetch_huggingface(name[3:]) if name.startswith("hf:") else Path(name)
    if path.is_dir():
        return _of_folder(path, name)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file or folder of weights (nor timm:NAME, hf:NAME)")
    return _of_file(path)


def _of_ours(model: ViViT, name: str) -> Pretrained:
    n_t, n_h, n_w = model.config.grid
    grid = (1 if model.config.factorised_encoder else n_t, n_h, n_w)
    fields = {name: getattr(model.config, name) for name in (*SHARED_SETTINGS, *_SIZE, "classifier")}
    return Pretrained(name, fields, arrays=to_scenic(model), grid=grid, known=True)


def _of_file(path: Path) -> Pretrained:
    if path.suffix == ".npz":
        return _of_arrays(read_arrays(path), path.name)
    if path.suffix == ".safetensors":
        if is_ours(path):
            return _of_ours(load_model(path)[0], path.name)
        return _bare(load_file(path), path.name)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _bare(_load_pickle(path), path.name)
    raise ValueError(f"{path}: must be .safetensors, .npz, .pt, .pth or .bin, or a folder")


def _load_pickle(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file of torch, and nothing that would have to be run."""
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of strangers makes of the unpickler
        raise ValueError(f"{path}: no file of weights alone; convert it to .safetensors") from error
    for name in ("state_dict", "model", "module"):
        state = state.get(name, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: holds no weights by name; convert it to .safetensors")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _of_folder(folder: Path, name: str) -> Pretrained:
    ours = folder / "model.safetensors"
    if ours.is_file() and is_ours(ours):
        return _of_ours(load_model(ours)[0], name)
    theirs = read_json(folder / "config.json")
    if timm_models.is_timm_folder(theirs):
        fields, as_timm = timm_models.read_folder(folder)
        return _of_weights(read_weights(folder), name, fields, as_timm, resize="bicubic_antialias")
    preprocessor = read_json(folder / "preprocessor_config.json", missing_ok=True)
    config = config_from_huggingface(theirs, preprocessor)
    fields = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    notes: tuple[str, ...] = ()
    if not preprocessor:
        notes = (f"no preprocessor_config.json: mean={config.mean}, std={config.std}",)
    resize = _RESIZE.get(theirs["model_type"], "bicubic")
    said = preprocessing.of_huggingface(preprocessor, config.height) if preprocessor else None
    state = read_weights(folder)
    return _of_weights(state, name, fields, said, resize=resize, grid=config.grid, notes=notes)


def _of_weights(
    state: Mapping[str, Tensor],
    name: str,
    fields: Mapping[str, Any],
    said: Preprocessing | None,
    *,
    resize: str,
    grid: tuple[int, int, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Pretrained:
    """Weights of a library that says all settings."""
    height, width = fields["height"] // fields["tubelet"][1], fields["width"] // fields["tubelet"][2]
    weights = families.read(state, height * width)
    grid = grid or (1, height, width)
    notes += () if said is None else said.notes
    return Pretrained(
        name, fields, weights, grid=grid, resize=resize, notes=notes, known=True, preprocessing=said
    )


def _of_arrays(arrays: Mapping[str, Any], name: str) -> Pretrained:
    named = read_arrays(arrays)
    if families.is_known(named):
        weights = families.read(named)
        return Pretrained(name, weights.fields, weights)
    if not any("encoderblock_0/" in key for key in named):
        raise ValueError(
            f"{name}: not the weights of a ViT or ViViT that we know (timm, Hugging Face, original)"
        )
    found, _ = from_npz(named)
    return Pretrained(name, {}, arrays=found)


def _bare(arrays: Mapping[str, Any], name: str) -> Pretrained:
    """A file without a config: its shapes say much, the rest is assumed, and said."""
    found = _of_arrays(arrays, name)
    if found.weights is None:
        return found
    weights, fields = found.weights, dict(found.fields)
    mean, std = IMAGENET
    fields |= {"heads": max(1, fields["dim"] // 64), "mean": mean, "std": std, "activation": "gelu"}
    if weights.has_rotary_positions:
        fields["rope"] = 100.0
    if fields["embed_norm"]:
        fields |= {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
    if fields["classifier"] == "map":
        fields["activation"] = "gelu_tanh"
    # DINOv2 is the family with layer scale and positions, and it resizes without antialiasing.
    resize = "bicubic" if weights.has_layer_scale and not fields["registers"] else "bicubic_antialias"
    side = max(1, 224 // fields["tubelet"][1]) * fields["tubelet"][1]
    assumed = {
        "heads": f"dim / 64 = {fields['heads']}",
        "mean": f"{mean} and std={std} of ImageNet",
        "activation": fields["activation"],
        "resize": resize,
        "size": f"{side}, the short side too, interpolation=bicubic",
    }
    notes = tuple(f"a file without settings: taken as {key}={value}" for key, value in assumed.items())
    made = Preprocessing(side, side, "bicubic")
    return dataclasses.replace(found, fields=fields, resize=resize, notes=notes, preprocessing=made)


def _has_time(source: Source) -> bool:
    return any(key.startswith("TemporalTransformer") or "_time/" in key for key in source.arrays)


def _differences(theirs: Mapping[str, Any], ours: ViViTConfig) -> tuple[str, ...]:
    """Settings that make the same weights compute something else; none of them is an error."""
    return tuple(
        f"the source was trained with {name}={theirs[name]}, the model has {getattr(ours, name)}"
        for name in ("activation", "layer_norm_eps", "mean", "std")
        if name in theirs and theirs[name] != getattr(ours, name)
    )


def fetch_huggingface(name: str) -> Path:
    """The local folder of a model on the Hugging Face hub, from its cache or the network.

    Raises:
        RuntimeError: The package huggingface_hub is missing, or the model cannot be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RuntimeError(
            f"hf:{name} needs the package huggingface_hub: pip install 'tubelet[pretrained]'"
        ) from error
    wanted = ["config.json", "preprocessor_config.json", "README.md", "*.safetensors"]
    return Path(_fetch(f"hf:{name}", lambda: snapshot_download(name, allow_patterns=wanted)))


def _fetch(name: str, fetch: Callable[[], Any]) -> Any:
    """Hubs raise errors of many kinds; all mean that the weights are not here."""
    try:
        return fetch()
    except (timm_models.TimmError, ValueError):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise RuntimeError(
            f"{name}: cannot be fetched ({type(error).__name__}: {reason}); check the name and the network, "
            "or download it elsewhere and give the folder or file"
        ) from error
