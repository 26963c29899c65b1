"""Each model learns what needs time and what needs place, and a broken axis is found out.

Both tasks are products of two signs, so that no sum over tokens solves them: tokens at two times (or places)
have to meet in an attention. That is what makes a broken axis visible; a task that positions and pooling can
solve ("where is the bright patch") would pass without any attention.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tubelet.vivit import ViViT, ViViTConfig
from tubelet.vivit.layers import Attention

VARIANTS = ("model1", "model2", "model3", "model4")
# A sum over tokens gets three of the four cases right at best.
LEARNT, WITHOUT_MEETING = 0.95, 0.85
TINY = {
    **{"frames": 3, "height": 8, "width": 8, "tubelet": (1, 4, 4), "classes": 2},
    **{"dim": 32, "layers": 2, "heads": 4, "mlp": 64, "temporal_layers": 2},
}


def clips(task: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Float clips `(count, 3, 8, 8, 3)` of 3 frames with 2x2 patches, and labels.

    order: every frame is bright or dark; the label says whether the first two are alike, whatever the last.
    place: every column is; the label says whether the two columns are alike, all frames being the same.
    """
    signs = torch.randint(0, 2, (count, 3), generator=generator) * 2.0 - 1
    clip = torch.randn(count, 3, 8, 8, 3, generator=generator) * 0.1
    if task == "order":
        clip += signs[:, :, None, None, None]
    else:
        columns = signs[:, :2].repeat_interleave(4, dim=1)
        clip += columns[:, None, None, :, None]
    return clip, (signs[:, 0] == signs[:, 1]).long()


def best_accuracy(variant: str, task: str, steps: int) -> float:
    """Of the checks every 20 steps; ends when the task is learnt."""
    torch.manual_seed(0)
    model = ViViT(ViViTConfig.from_dict(TINY | {"variant": variant}))
    generator, best = torch.Generator().manual_seed(1), 0.0
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(1, steps + 1):
        clip, label = clips(task, 32, generator)
        optimiser.zero_grad()
        F.cross_entropy(model(clip), label).backward()
        optimiser.step()
        if step % 20 == 0:
            clip, label = clips(task, 256, torch.Generator().manual_seed(2))
            best = max(best, (model(clip).argmax(1) == label).float().mean().item())
        if best >= LEARNT:
            break
    return best


@pytest.mark.parametrize("task", ["order", "place"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_learns(variant: str, task: str) -> None:
    assert best_accuracy(variant, task, steps=200) >= LEARNT


@pytest.mark.parametrize(("broken", "task"), [("time", "order"), ("space", "place")])
@pytest.mark.parametrize("variant", ["model3", "model4"])
def test_broken_axis_is_found_out(
    variant: str, broken: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: one axis attends over the other one, as a wrong reshape would make it."""
    space, time = Attention._over_space, Attention._over_time
    if broken == "time":
        monkeypatch.setattr(Attention, "_over_time", space)
    else:
        monkeypatch.setattr(Attention, "_over_space", time)
        monkeypatch.setattr(
            Attention, "_fused_over_space", lambda self, x, _rope: time(self, x, 0, x.shape[-1])
        )
    assert best_accuracy(variant, task, steps=100) <= WITHOUT_MEETING
