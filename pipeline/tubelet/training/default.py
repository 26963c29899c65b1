"""Which recipe a run means that names none."""

from __future__ import annotations

from tubelet.corpus.selection import read_labelled
from tubelet.training.examples import NOT_NEEDED, load_examples
from tubelet.training.initial import read_init
from tubelet.training.recipe import Recipe
from tubelet.training.request import TrainSettings


def few_labels(frozen: Recipe, settings: TrainSettings) -> str | None:
    """Why such a run means the recipe ``frozen``, in one line; None where it does not.

    It does where ``init`` names weights that embed single frames, and fewer than ``few`` clips are labelled.

    Raises:
        UserError: no manifest, no labels, no such weights.
    """
    assert settings.init is not None
    examples = load_examples(
        read_labelled(
            settings.manifest, frozen.head_columns.values(), without=NOT_NEEDED, options=settings.options
        ),
        frozen.head_columns,
        multilabel=frozen.multilabel,
    )
    if len(examples) >= frozen.few:
        return None
    if not read_init(settings.init, settings.tracking_uri, settings.options).embeds_frames:
        return None
    return (
        f"{len(examples)} labelled clips to train on are few (under few={frozen.few}): --recipe frozen, "
        "a head on frozen features chosen by cross-validation; name another --recipe for another way"
    )
