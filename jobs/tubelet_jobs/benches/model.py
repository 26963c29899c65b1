"""``tubelet bench model``: forward passes a second of every variant, and of Hugging Face's Vivit (Model 1).

Model 1 is the one variant that ``transformers`` has. It gets our weights, so that the logits can be
compared, and the same clips: ours from uint8 tubelets with the normalisation folded into the embedding, as
jobs run it; the peers from normalised float clips, as their image processor leaves them (making those is not
timed). Models take turns, the best of their rounds counts.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet_jobs.bench import BenchOptions, missing_peer
from tubelet_jobs.common import say

PEERS = ("hf-sdpa", "hf-eager")
# The smallest of the paper's sizes; a CPU takes seconds for a clip of it, and --full does all variants.
_MODELS, _FULL_MODELS = ("b-16x2-model1", "b-16x2-model2"), tuple(f"b-16x2-model{i}" for i in (1, 2, 3, 4))
_CPU_BATCH, _GPU_BATCH = 1, 16
_ROUNDS = 2
_CLASSES = 400


@dataclass(frozen=True)
class Setting:
    """What the models run on, and with how many clips at once."""

    device: Any
    dtype: Any
    batch: int

    @classmethod
    def of_machine(cls) -> Setting:
        """bf16 on a GPU, float32 on a CPU."""
        import torch

        if torch.cuda.is_available():
            return cls(torch.device("cuda"), torch.bfloat16, _GPU_BATCH)
        return cls(torch.device("cpu"), torch.float32, _CPU_BATCH)

    @property
    def columns(self) -> dict[str, Any]:
        """For the table."""
        import torch

        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {"batch": self.batch, "dtype": str(self.dtype).removeprefix("torch."), "device": name}


def run(options: BenchOptions) -> list[dict[str, Any]]:
    """Measure; a row for each of our variants, and one for each peer on Model 1.

    Raises:
        UserError: a peer's package is missing.
    """
    peers = options.peers(PEERS)
    if peers:
        _check_peer(peers[0])
    setting = Setting.of_machine()
    names = _FULL_MODELS if options.full or setting.device.type == "cuda" else _MODELS
    return [row for name in names for row in _measure(name, peers, setting)]


def _check_peer(peer: str) -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_peer(peer, error) from error


def _measure(name: str, peers: list[str], setting: Setting) -> list[dict[str, Any]]:
    import torch
    from tubelet.training.speed import peak_flops
    from tubelet.vivit import ViViT, ViViTConfig, gmacs

    say(f"bench model: {name}")
    torch.manual_seed(0)
    config = ViViTConfig.preset(name, classes=_CLASSES)
    model = ViViT(config).eval()
    with torch.no_grad():  # a new head is zero, and so would all logits be
        for parameter in model.head.parameters():
            parameter.normal_(std=0.02)
    shape = (setting.batch, config.frames, config.height, config.width, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    forwards = {"tubelet": _ours(model, clips, setting)}
    if config.variant == "model1":
        forwards |= _theirs(model, clips, peers, setting)
    precision = "bf16" if setting.dtype == torch.bfloat16 else "float32"
    # A CPU's peak is measured, and the cores may be busy with something else for a while.
    before = peak_flops(setting.device, precision)
    seconds = _take_turns(forwards, setting)
    after = peak_flops(setting.device, precision)
    peak = max(before, after) if before and after else None
    rates = {peer: setting.batch / spent for peer, (spent, _) in seconds.items()}
    best = max((rate for peer, rate in rates.items() if peer != "tubelet"), default=None)
    rows = []
    for peer, (_, logits) in seconds.items():
        row: dict[str, Any] = {"bench": "model", "peer": peer, "model": name, **setting.columns}
        row["clips_per_s"] = rates[peer]
        row["mfu"] = None if peak is None else rates[peer] * 2e9 * gmacs(config) / peak
        row["ratio_to_best_peer"] = None if best is None else rates[peer] / best
        row["max_logit_diff"] = float((logits - seconds["tubelet"][1]).abs().max())
        rows.append(row)
    return rows


def _ours(model: Any, clips: Any, setting: Setting) -> Callable[[], Any]:
    from tubelet.vivit import clip_to_tubelets, fold_normalisation

    tubelets = clip_to_tubelets(clips, model.config.tubelet).to(setting.device)
    folded = fold_normalisation(copy.deepcopy(model)).to(setting.device, setting.dtype)
    return lambda: folded(tubelets)


def _theirs(model: Any, clips: Any, peers: list[str], setting: Setting) -> dict[str, Callable[[], Any]]:
    import torch
    from transformers import VivitForVideoClassification
    from tubelet.vivit import save_huggingface

    config = model.config
    mean, std = (torch.tensor(values) for values in (config.mean, config.std))
    pixels = ((clips.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3).to(setting.device, setting.dtype)
    found: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory(prefix="tubelet-bench-") as folder:
        save_huggingface(model, Path(folder), labels=[f"class {i}" for i in range(_CLASSES)])
        for peer in peers:
            kind = peer.removeprefix("hf-")
            theirs = VivitForVideoClassification.from_pretrained(folder, attn_implementation=kind)
            theirs = theirs.eval().to(setting.device, setting.dtype)
            found[peer] = lambda theirs=theirs: theirs(pixel_values=pixels).logits  # type: ignore[misc]
    return found


def _take_turns(forwards: dict[str, Callable[[], Any]], setting: Setting) -> dict[str, tuple[float, Any]]:
    """The best seconds of a batch, and the logits, of each."""
    import torch

    best: dict[str, tuple[float, Any]] = {}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 1):
            for peer, forward in forwards.items():
                started_s = time.perf_counter()
                logits = forward().float().cpu()  # waits for a GPU
                spent = time.perf_counter() - started_s
                if turn and spent < best.get(peer, (float("inf"), None))[0]:  # the first round warms up
                    best[peer] = (spent, logits)
    return best
