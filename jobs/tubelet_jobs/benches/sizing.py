"""What it takes to label so many videos in so many hours: cores, GPUs and dollars, from measured rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from tubelet.config import Settings, load_settings, read_yaml


class Prices(Settings):
    """What an hour costs, in dollars: round figures of the large clouds' on-demand prices, unless given."""

    core_hour: float = Field(default=0.05, ge=0)
    gpu_hour: float = Field(default=3.0, ge=0)

    @classmethod
    def of(cls, path: str | None) -> Prices:
        """Those of a YAML file, such as ``core_hour: 0.02``.

        Raises:
            UserError: there is none, or it has other keys or values.
        """
        return cls() if path is None else load_settings(cls, read_yaml(path))


@dataclass(frozen=True)
class Rates:
    """What was measured, of videos of one kind and one model.

    Attributes:
        video, model: their names.
        decode_per_core: clips per second that one core decodes.
        model_per_gpu: clips per second of the model on one GPU; None: there is none.
        model_per_core: the same on one core, where there is no GPU.
    """

    video: str
    model: str
    decode_per_core: float
    model_per_gpu: float | None = None
    model_per_core: float | None = None


@dataclass(frozen=True)
class Sizing:
    """The answer, with its arithmetic.

    Attributes:
        lines: of the arithmetic, to print.
    """

    cores: int
    gpus: int
    dollars: float
    lines: tuple[str, ...]

    def row(self, rates: Rates, videos: int, hours: float) -> dict[str, Any]:
        """For the table and the JSON file."""
        return {
            "bench": "pipeline",
            "peer": "plan",
            "video": rates.video,
            "model": rates.model,
            "videos": videos,
            "hours": hours,
            "cores": self.cores,
            "gpus": self.gpus,
            "dollars": self.dollars,
        }


def size(videos: int, hours: float, rates: Rates, prices: Prices) -> Sizing:
    """Cores and GPUs that label ``videos``, one clip of each, in ``hours``; all are paid for all hours."""
    wanted = videos / (hours * 3600)
    lines = [f"{rates.video}: {videos:,} clips in {hours:g} h are {wanted:.4g} clips/s"]
    decoding = wanted / rates.decode_per_core
    lines.append(
        f"  decode: {wanted:.4g} clips/s / {rates.decode_per_core:.4g} per core = {decoding:.2f} cores"
    )
    cores, gpus = decoding, 0
    if rates.model_per_gpu is not None:
        share = wanted / rates.model_per_gpu
        gpus = math.ceil(share)
        lines.append(
            f"  {rates.model}: {wanted:.4g} clips/s / {rates.model_per_gpu:.4g} per GPU = {share:.2f} GPUs"
        )
    elif rates.model_per_core is not None:
        share = wanted / rates.model_per_core
        cores += share
        lines.append(
            f"  {rates.model}: {wanted:.4g} clips/s / {rates.model_per_core:.4g} per core = {share:.2f} cores"
        )
    whole = math.ceil(cores)
    dollars = hours * (whole * prices.core_hour + gpus * prices.gpu_hour)
    lines.append(
        f"  {whole} cores and {gpus} GPUs for {hours:g} h: {hours:g} x ({whole} x ${prices.core_hour:g} + "
        f"{gpus} x ${prices.gpu_hour:g}) = ${dollars:,.2f}"
    )
    return Sizing(whole, gpus, round(dollars, 2), tuple(lines))
