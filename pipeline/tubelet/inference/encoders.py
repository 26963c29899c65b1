"""What `tubelet embed` takes for a model: one of tubelet's, a video classifier, or an image ViT of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle, content_identity, is_model
from tubelet.storage import DEFAULT_OPTIONS, StorageOptions
from tubelet.vivit import Pretrained, ViViT, ViViTConfig, init_from, read_pretrained

# Frames of a clip of an image model that nobody chose a number for.
FRAMES = 8


@dataclass(frozen=True)
class ClipChoice:
    """How clips of an image model are cut; None: 8 frames of the whole video, sized as it was trained."""

    frames: int | None = None
    stride: int | None = None
    size: int | None = None

    @property
    def given(self) -> list[str]:
        """The flags that were given."""
        return [f"--{name}" for name, value in vars(self).items() if value is not None]


def load_encoder(
    name: str,
    tracking_uri: str | None = None,
    options: StorageOptions = DEFAULT_OPTIONS,
    choice: ClipChoice = ClipChoice(),
) -> tuple[ModelBundle, tuple[str, ...]]:
    """A model that embeds clips, and what was assumed of it.

    An image model sees each frame by itself (variant "average"), and its embedding of a clip is the mean of
    what its own library pools.

    Args:
        name: a MODEL; ``timm:NAME``, ``hf:NAME``, a folder or file of an image ViT.
        choice: of an image model's clips; a MODEL brings its own.

    Raises:
        UserError: nothing is there, it cannot be read, or it is no image model.
    """
    try:
        if is_model(name):
            return _own_model(name, tracking_uri, options, choice), ()
        source = read_pretrained(name)
        model, clip = _image_model(source, choice)
        report = init_from(model, name, spatial_cls=True)
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        raise UserError(f"--model {name}: {error}") from error
    missing = [part for part in report.initialised if part.startswith(("embedding.", "encoder."))]
    if missing:
        raise UserError(f"--model {name}: lacks {len(missing)} weights, such as {missing[0]}")
    bundle = ModelBundle(model.eval(), {"label": ["none"]}, clip, metadata={"source": name}, source=name)
    bundle.identity = content_identity(bundle)
    return bundle, source.notes


def _own_model(
    name: str, tracking_uri: str | None, options: StorageOptions, choice: ClipChoice
) -> ModelBundle:
    if choice.given:
        raise UserError(f"{', '.join(choice.given)}: {name} says itself how clips are cut; leave it out")
    return ModelBundle.load(name, tracking_uri, options)


def _image_model(source: Pretrained, choice: ClipChoice) -> tuple[ViViT, ClipSpec]:
    fields: dict[str, Any] = source.size() | source.settings("average")
    if "heads" not in fields:
        raise ValueError("says nothing of its size and heads; train with --init, or give it as safetensors")
    if fields.get("tubelet", (1,))[0] != 1 or (source.grid or (1,))[0] != 1:
        raise ValueError("a video model without a classifier: train one with --init, or give an image model")
    known = source.preprocessing
    size = choice.size or (known.size if known else 224)
    short_side = round(size * known.short_side / known.size) if known else size
    clip = ClipSpec(
        frames=choice.frames or FRAMES,
        stride=choice.stride,
        size=size,
        short_side=max(size, short_side),
        tubelet=fields["tubelet"],
        interpolation=known.interpolation if known else "bicubic",
    )
    config = ViViTConfig.from_dict(
        {**fields, "variant": "average", "frames": clip.frames, "height": size, "width": size, "classes": 1}
    )
    torch.manual_seed(0)  # of the head, which nobody asks for
    return ViViT(config), clip
