"""From a prepared request to what the ranks get: plan, stream, initial weights."""

from __future__ import annotations

import tempfile
from typing import Any

import ray
import torch

from tubelet import storage
from tubelet.clips import TrainCrop, parse_views
from tubelet.inference.bundle import ModelBundle
from tubelet.storage.lock import Claim
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.examples import Targets
from tubelet.training.feed import FeedConfig
from tubelet.training.initial import check_frozen, read_init
from tubelet.training.job import TrainJob
from tubelet.training.optim import frozen_names
from tubelet.training.plan import Plan, Validation
from tubelet.training.prepare import INITIAL, Prepared
from tubelet.training.resources import Resources
from tubelet.training.state import MODEL_FILE
from tubelet.training.stream import StreamConfig
from tubelet.vivit import ViViT


def initial_model(prepared: Prepared) -> str:
    """Write the weights that step 0 starts from, once, so that a resume starts from the same.

    Returns what became of the weights of ``--init``, as a table for people ('' without).

    Raises:
        UserError: ``--init`` names no weights, or they do not fit the model, or ``freeze`` would keep what
            they do not reach.
    """
    request = prepared.request
    target = storage.join(request.out, INITIAL, MODEL_FILE)
    if prepared.record is not None and storage.exists(target, request.out_options):
        return ""
    torch.manual_seed(request.recipe.seed)
    model = ViViT(prepared.config)
    report = _fill(model, prepared) if request.init else ""
    with tempfile.TemporaryDirectory(prefix="tubelet-init-") as folder:
        bundle = ModelBundle(model, prepared.examples.labels, prepared.spec, request.recipe.multilabel)
        storage.upload_file(bundle.save(folder), target, request.out_options)
    return report


def _fill(model: ViViT, prepared: Prepared) -> str:
    request, recipe = prepared.request, prepared.request.recipe
    init = read_init(request.init or "", request.tracking_uri, request.options)
    report = init.fill(model, recipe.init, prepared.examples.labels)
    check_frozen(report, frozen_names(model, recipe.freeze), recipe.freeze)
    return str(report)


def metadata_of(prepared: Prepared) -> dict[str, Any]:
    """What every model file of the run says of its origin."""
    return {
        "recipe": prepared.request.recipe.model_dump(mode="json"),
        "manifest": prepared.manifest,
        "data_fingerprint": prepared.examples.fingerprint,
    }


def plan_of(prepared: Prepared) -> Plan:
    """The sample plan of the whole run."""
    recipe, examples = prepared.request.recipe, prepared.examples
    groups = next(iter(examples.targets.values())) if recipe.sampling == "balanced" else None
    others = prepared.validation.table if prepared.validation else None
    return Plan(examples.table, recipe.batch, recipe.seed, groups, validation_of(prepared), others)


def validation_of(prepared: Prepared) -> Validation | None:
    """Which videos are looked at between steps, and when."""
    if prepared.validation is None:
        return None
    settings = prepared.request.recipe.evaluation
    temporal, spatial = parse_views(settings.views)
    return Validation(len(prepared.validation), temporal * spatial, settings.every, prepared.total_steps)


def targets_of(prepared: Prepared) -> tuple[Targets, Targets | None]:
    """Targets of the training and of the validation videos."""
    return prepared.examples.targets, prepared.validation.targets if prepared.validation else None


def stream_config(prepared: Prepared, decode_workers: int) -> StreamConfig:
    """How its samples are decoded."""
    request, cut = prepared.request, prepared.request.recipe.augment
    return StreamConfig(
        spec=prepared.spec,
        crop=TrainCrop(
            crop=cut.crop,
            scale_jitter=cut.jitter,
            shift=cut.shift,
            area=cut.area,
            ratio=cut.ratio,
            flip=cut.flip,
        ),
        views=parse_views(request.recipe.evaluation.views),
        seed=request.recipe.seed,
        decode_workers=decode_workers,
        storage=request.options,
        limits=request.limits.limits(),
    )


def make_job(prepared: Prepared, resources: Resources, queue: Any, claim: Claim | None = None) -> TrainJob:
    """What every rank gets; the plan and the targets lie in Ray's object store.

    ``claim``: what the job holds its output by.
    """
    request, recipe = prepared.request, prepared.request.recipe
    plan = ray.put(plan_of(prepared))
    stream = stream_config(prepared, resources.decode_workers)
    store = CheckpointStore.of(request, claim)
    feed = FeedConfig(plan, stream, recipe.batch, recipe.accumulate, prepared.total_steps, store, resources)
    return TrainJob(
        recipe=recipe,
        spec=prepared.spec,
        labels=prepared.examples.labels,
        targets=ray.put(targets_of(prepared)),
        train_rows=len(prepared.examples),
        validation=validation_of(prepared),
        feed=feed,
        initial=storage.join(request.out, INITIAL),
        events=queue,
        metadata=metadata_of(prepared),
        watch_nodes=len(ray.nodes()) > 1,
    )
