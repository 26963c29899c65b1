"""What a run starts from: a model of tubelet, or weights of others with what their source says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet import storage
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.bundle import ModelBundle
from tubelet.storage import StorageOptions
from tubelet.training.recipe import InitSettings
from tubelet.vivit import LoadReport, Preprocessing, Pretrained, ViViT, init_from, read_pretrained

# The recipe's word for a way to start Model 3's second attention, where the model's own word differs.
_TEMPORAL = {"zero_out": "zero_output"}
# Likewise where a part of the source is left, and the model keeps what it drew.
_EMBEDDING = {"random": "keep"}


@dataclass(frozen=True)
class Init:
    """Weights of ``--init``, read.

    Attributes:
        name: As the user gave it.
        source: The weights and their source's settings.
        model: Where it is a model of tubelet, that model.
        labels, clip: Of that model.
    """

    name: str
    source: Pretrained
    model: ViViT | None = None
    labels: dict[str, list[str]] | None = None
    clip: ClipSpec | None = None

    def fill(self, model: ViViT, settings: InitSettings, labels: dict[str, list[str]]) -> LoadReport:
        """Fill ``model`` in place; a classifier of the very same labels is taken over too.

        Raises:
            UserError: the weights do not fit the model; what would.
        """
        # The authors' code leaves Model 2's spatial class token out, and its files are loaded like that.
        spatial_cls = settings.spatial_cls
        # "auto" tiles as "tile" does, and resizes where the grids differ.
        automatic = self.model is not None or settings.position == "tile"
        try:
            return init_from(
                model,
                self.model if self.model is not None else self.name,
                embedding=_EMBEDDING.get(settings.embedding, settings.embedding),
                position="auto" if automatic else settings.position,
                resize=settings.resize,
                temporal_attention=_TEMPORAL.get(settings.temporal, settings.temporal),
                head=self.labels == labels and self._same_features(model),
                spatial_cls=not self.name.endswith(".npz") if spatial_cls is None else spatial_cls,
            )
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            raise UserError(f"--init {self.name}: {error}") from error

    def _same_features(self, model: ViViT) -> bool:
        """Whether a classifier of the model that is read can stand on what ``model`` pools."""
        ours, theirs = model.config, self.model.config if self.model else None
        names = ("pooled_width", "pre_logits", "temporal_pool")
        return theirs is not None and all(getattr(ours, name) == getattr(theirs, name) for name in names)

    @property
    def embeds_frames(self) -> bool:
        """Whether its embedding takes single frames, as that of an image model does."""
        tubelet = self.source.fields.get("tubelet")
        return tubelet is not None and tubelet[0] == 1 and (self.source.grid or (1, 0, 0))[0] == 1

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How clips are cut for it, where that is known."""
        if self.clip is None:
            return self.source.preprocessing
        return Preprocessing(self.clip.size, self.clip.resize_side, self.clip.interpolation)

    def fields(self, variant: str, *, size: bool) -> dict[str, Any]:
        """Model fields that follow the source: what its weights mean and, with ``size``, its dimensions."""
        return self.source.settings(variant) | (self.source.size() if size else {})


def read_init(name: str, tracking_uri: str | None, options: StorageOptions) -> Init:
    """The weights that ``--init`` names.

    Raises:
        UserError: there are none, or none that can be read.
    """
    try:
        if _is_ours(name):
            bundle = ModelBundle.load(name, tracking_uri, options)
            return Init(name, read_pretrained(bundle.model), bundle.model, bundle.labels, bundle.clip)
        return Init(name, read_pretrained(name))
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        raise UserError(f"--init {name}: {error}") from error


def check_frozen(report: LoadReport, frozen: set[str], freeze: str) -> None:
    """Refuse to freeze what the weights of ``--init`` did not reach.

    Raises:
        UserError: names one such parameter, and what would learn it.
    """
    random = sorted(frozen & set(report.initialised))
    if random:
        instead = "freeze=spatial" if random[0].startswith("temporal_encoder") else "freeze=none"
        raise UserError(
            f"freeze={freeze} would keep {len(random)} parameters at their random start, such as {random[0]} "
            f"({report.initialised[random[0]]}): set {instead}, or --init weights that have them"
        )


def _is_ours(source: str) -> bool:
    """Whether ``source`` is a MODEL of tubelet, rather than weights of others."""
    if source.startswith(("runs:/", "models:/")) or storage.is_remote(source):
        return True
    path = Path(source)
    return path.is_dir() and not (path / "config.json").exists() and not source.startswith(("timm:", "hf:"))
