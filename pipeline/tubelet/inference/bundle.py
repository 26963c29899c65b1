"""A model as people hand it around: weights, label names and preprocessing in one safetensors file.

A MODEL on the command line is a ``train --out`` folder, one of its checkpoints, such a file itself (each on
any store), ``runs:/ID`` or ``models:/NAME@ALIAS``, or a video classifier of Hugging Face: its folder, or
``hf:NAME`` from the hub's cache or the network. A ``train --out`` folder whose training has not ended has
no final weights yet; its newest complete checkpoint is taken then, and :attr:`ModelBundle.source` says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tubelet import storage
from tubelet._version import NewerSchemaError
from tubelet.clips import ClipSpec
from tubelet.config import UserError
from tubelet.inference.classifiers import classifier_folder, is_video_classifier, read_classifier
from tubelet.inference.integrity import MARKER, what_is_torn
from tubelet.storage import StorageOptions
from tubelet.tracking import ModelLink, model_link, resolve_model
from tubelet.tracking.registry import MODEL_FILE
from tubelet.vivit import ViViT, is_ours, load_model, save_model

logger = logging.getLogger(__name__)

DEFAULT_OPTIONS = StorageOptions()


@dataclass
class ModelBundle:
    """A model that can be used without its recipe.

    ``labels``: class names of each head, in the order of its logits; a model of one label set calls its head
    ``label``. ``clip``: how clips are cut. ``multilabel``: sigmoid instead of softmax. ``metadata``: plain
    values kept in the file beside these (recipe, step, run id). ``source``: where it was loaded from;
    ``identity``: what names this model in tables, a registered version or a hash of its content.
    """

    model: ViViT
    labels: dict[str, list[str]]
    clip: ClipSpec
    multilabel: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    identity: str = ""
    link: ModelLink | None = None

    def __post_init__(self) -> None:
        heads = self.model.config.label_heads
        counts = {head: len(names) for head, names in self.labels.items()}
        if heads != counts:
            raise ValueError(f"the model has {heads} classes, the labels are {counts}")

    def save(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` into a local folder; returns the file's path."""
        path = Path(folder) / MODEL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, self.model, self._metadata())
        return path

    @classmethod
    def load(
        cls,
        uri: str | Path,
        tracking_uri: str | None = None,
        options: StorageOptions = DEFAULT_OPTIONS,
        device: str | torch.device = "cpu",
    ) -> ModelBundle:
        """Load a MODEL.

        Raises:
            UserError: there is no model there (says what was looked for), or it is none of tubelet.
        """
        folder = classifier_folder(str(uri))
        if folder is not None:
            return cls._of_huggingface(folder, str(uri), device)
        with _local_file(str(uri), tracking_uri, options) as (path, source, link):
            return cls._read(path, source, link, device)

    @property
    def run_id(self) -> str | None:
        """MLflow run that trained the model."""
        found = self.link.run_id if self.link else None
        return found or self.metadata.get("run_id")

    def described(self) -> ModelLink:
        """What MLflow knows of the model, for the run that uses it."""
        return self.link or ModelLink(self.source, self.run_id)

    def same_classes(self, seen: Mapping[str, set[str]], where: str) -> None:
        """Refuse labels that the model has no class for.

        Raises:
            UserError: names some of them, and some of the model's.
        """
        for head, names in seen.items():
            if head not in self.labels:
                raise UserError(
                    f"the model has no head {head!r} as {where} has (it has {', '.join(self.labels)}): "
                    "use a model that was trained with heads= like it"
                )
            unknown = sorted(names - set(self.labels[head]))
            if unknown:
                raise UserError(
                    f"{where} has {len(unknown)} labels that the model does not know, such as {unknown[:3]} "
                    f"(the model has {len(self.labels[head])}, such as {self.labels[head][:3]}): "
                    "use the manifest it was trained on, or train anew"
                )

    def _metadata(self) -> dict[str, Any]:
        return {
            **self.metadata,
            "labels": self.labels,
            "clip": self.clip.model_dump(mode="json"),
            "multilabel": self.multilabel,
        }

    @classmethod
    def _of_huggingface(cls, folder: Path, name: str, device: str | torch.device) -> ModelBundle:
        found = read_classifier(folder, name, device)
        bundle = cls(found.model, {"label": found.labels}, found.clip, found.multilabel, found.metadata, name)
        bundle.identity = content_identity(bundle)
        bundle.link = ModelLink(name, None)
        return bundle

    @classmethod
    def _read(
        cls, path: Path, source: str, link: ModelLink | None, device: str | torch.device
    ) -> ModelBundle:
        try:
            model, metadata = load_model(path, device)
            labels, clip = metadata.pop("labels"), metadata.pop("clip")
        except NewerSchemaError as error:
            raise UserError(str(error).replace(str(path), source)) from error
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{source} is no model of tubelet ({error}): give a train --out folder, "
                "or start from these weights with train --init"
            ) from error
        bundle = cls(
            model,
            {head: list(names) for head, names in labels.items()},
            ClipSpec.model_validate(clip),
            bool(metadata.pop("multilabel", False)),
            metadata,
            source,
        )
        bundle.identity = (link.identity if link else None) or content_identity(bundle)
        bundle.link = link or ModelLink(source, bundle.run_id)
        return bundle


def is_model(source: str) -> bool:
    """Whether ``source`` is a MODEL, rather than weights that a model can begin with.

    Local paths are looked into; elsewhere there are only MODELs.
    """
    if source.startswith(("runs:/", "models:/")) or storage.is_remote(source):
        return True
    if source.startswith(("timm:", "hf:")):
        return source.startswith("hf:") and _is_classifier(source)
    path = Path(storage.normalise_uri(source))
    if path.is_dir():
        return _is_classifier(source) if (path / "config.json").exists() else True
    return path.is_file() and is_ours(path)


def _is_classifier(uri: str) -> bool:
    folder = classifier_folder(uri)
    return folder is not None and is_video_classifier(folder)


def content_identity(bundle: ModelBundle) -> str:
    """What names a model that is registered nowhere: its content."""
    return f"sha256:{_digest(bundle)}"


def find_link(bundle: ModelBundle, tracking_uri: str | None) -> ModelLink:
    """What MLflow knows of ``bundle``; asks the server where the model came from a folder."""
    link = bundle.described()
    if link.model_id or not bundle.run_id:
        return link
    return model_link(link.uri, bundle.run_id, tracking_uri)


@contextmanager
def _local_file(
    uri: str, tracking_uri: str | None, options: StorageOptions
) -> Iterator[tuple[Path, str, ModelLink | None]]:
    """The model's file on this machine, where it was found, its link; a download is deleted after."""
    if uri.startswith(("runs:/", "models:/")):
        folder, link = resolve_model(uri, tracking_uri)
        yield folder / MODEL_FILE, uri, link
        return
    found = find_file(uri, options)
    if not storage.is_remote(found):
        yield Path(found), found, None
        return
    with tempfile.TemporaryDirectory(prefix="tubelet-model-") as temporary:
        path = Path(temporary) / MODEL_FILE
        storage.download_file(found, path, options)
        yield path, found, None


def find_file(uri: str, options: StorageOptions = DEFAULT_OPTIONS) -> str:
    """URI of the model file that the folder or file ``uri`` stands for.

    Raises:
        UserError: there is none.
    """
    uri = storage.normalise_uri(uri)
    if uri.endswith(".safetensors") and storage.stat(uri, options) is not None:
        return uri
    direct = storage.join(uri, MODEL_FILE)
    if storage.stat(direct, options) is not None:
        if storage.name_of(uri).startswith("step-"):
            _check_complete(uri, options)
        return direct
    if storage.stat(storage.join(uri, MARKER), options) is not None:
        _check_complete(uri, options)  # a checkpoint whose model is gone
    torn: list[str] = []
    checkpoints = storage.join(uri, "checkpoints")
    for name in sorted(storage.list_names(checkpoints, options), reverse=True):
        path = storage.join(checkpoints, name)
        if storage.stat(storage.join(path, MARKER), options) is None:
            continue  # never finished
        reason = what_is_torn(path, options)
        if reason is None:
            for line in torn:
                logger.warning("checkpoint %s: skipped, %s is taken instead", line, name)
            return storage.join(path, MODEL_FILE)
        torn.append(f"{name} is damaged ({reason})")
    more = f" ({'; '.join(torn)})" if torn else ""
    raise UserError(
        f"no model at {uri}: neither {MODEL_FILE} nor a complete checkpoint is there{more}; "
        "give a train --out folder, models:/NAME@ALIAS, runs:/ID, or hf:NAME of a video classifier"
    )


def _check_complete(folder: str, options: StorageOptions) -> None:
    reason = what_is_torn(folder, options)
    if reason is not None:
        raise UserError(
            f"the checkpoint {folder} is incomplete ({reason}): give the train --out folder, or an older "
            "checkpoint"
        )


def _digest(bundle: ModelBundle) -> str:
    """Of what decides a prediction: weights, config, label names, preprocessing.

    Not of the file, whose header safetensors writes in another order each time.
    """
    rules = {
        "config": bundle.model.config.to_dict(),
        "labels": bundle.labels,
        "clip": bundle.clip.model_dump(mode="json"),
        "multilabel": bundle.multilabel,
    }
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for name, tensor in sorted(bundle.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
