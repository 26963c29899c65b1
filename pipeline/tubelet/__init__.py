"""tubelet: turn a bucket of videos into labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tubelet._version import __version__

if TYPE_CHECKING:
    import os

    from tubelet.inference.local import LocalModel

__all__ = ["__version__", "load"]


def load(
    model: str | os.PathLike[str], *, tracking_uri: str | None = None, anonymous: bool = False
) -> LocalModel:
    """Load a model to label videos in this process, without Ray.

    ``tubelet.load("models:/moves@champion").predict("video.mp4")`` gives the row that ``tubelet label`` would
    write.

    Args:
        model: a MODEL: a ``train --out`` folder or one of its checkpoints, on any store, ``runs:/ID`` or
            ``models:/NAME@ALIAS``.
        tracking_uri: MLflow server (default: ``MLFLOW_TRACKING_URI``).
        anonymous: read public buckets without credentials.

    Raises:
        UserError: there is no model there, or it is none of tubelet.
    """
    import os

    from tubelet.inference.bundle import ModelBundle
    from tubelet.inference.local import LocalModel
    from tubelet.storage import StorageOptions

    options = StorageOptions(anonymous=anonymous)
    bundle = ModelBundle.load(os.fspath(model), tracking_uri, options)
    return LocalModel(bundle, options)
