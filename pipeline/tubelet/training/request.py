"""What a person asks of a training run; light to import, so that the command line can read its options."""

from __future__ import annotations

from typing import Annotated

from tubelet import storage
from tubelet.config import Option, Settings
from tubelet.decode_limits import DecodeLimits
from tubelet.storage import StorageOptions
from tubelet.training.recipe import Recipe


class TrainSettings(Settings):
    """Where a run reads and writes, and how it begins."""

    manifest: Annotated[str, Option()]
    """Manifest made by `tubelet index`."""
    out: Annotated[str, Option()]
    """Where checkpoints and the model go."""
    init: Annotated[str | None, Option()] = None
    """Weights to start from."""
    resume: Annotated[bool, Option()] = False
    """Go on at the newest checkpoint in --out."""
    features: Annotated[str | None, Option()] = None
    """Where features of frames are kept, with a recipe such as frozen (default: beside the manifest)."""
    name: Annotated[str | None, Option()] = None
    """Of the run and of the registered model (default: recipe, variant and date; the last part of --out)."""
    experiment: Annotated[str, Option()] = "tubelet"
    """MLflow experiment."""
    tracking_uri: Annotated[str | None, Option(envvar="MLFLOW_TRACKING_URI")] = None
    """MLflow server (default: sqlite:///mlflow.db)."""
    limits: DecodeLimits = DecodeLimits()
    """What one video may cost."""
    options: StorageOptions = StorageOptions()
    """How to reach the stores."""

    @property
    def out_options(self) -> StorageOptions:
        """How to reach what is in --out."""
        return self.options.for_writing()


class Request(TrainSettings):
    """A whole request: the settings and the recipe."""

    recipe: Recipe
    scratch: Recipe | None = None
    """Of the small ViViT from scratch that a selection compares its heads with; None: none."""
    recipe_name: str = ""
    """As people know the recipe."""

    @property
    def model_name(self) -> str:
        """Of the model where it is registered, as MLflow takes it.

        Raises:
            UserError: nothing of the name is left.
        """
        # Here, since the command line reads the settings above without MLflow's tracker.
        from tubelet.tracking import model_name

        return model_name(self.name or storage.name_of(self.out))
