"""`python -m tubelet.vivit`: parameters and multiply-accumulates of all presets, by part."""

from __future__ import annotations

import sys

from tubelet.vivit.config import ViViTConfig
from tubelet.vivit.counting import PRESETS, macs_by_part, parameters_by_part


def table(classes: int = 400) -> str:
    """One row per preset: tokens, parameters (M), GMACs, and the GMACs by part."""
    parts = ("embedding", "spatial", "temporal", "mlp", "head")
    head = ("preset", "clip", "tokens", "params M", "GMACs", *parts)
    rows: list[tuple[str, ...]] = [head]
    for name in PRESETS:
        config = ViViTConfig.preset(name, classes=classes)
        macs, count = macs_by_part(config), sum(parameters_by_part(config).values())
        clip = f"{config.frames}x{config.height}x{config.width}"
        total = sum(macs.values())
        figures = (f"{value / 1e9:.2f}" for value in (total, *(macs[part] for part in parts)))
        rows.append((name, clip, str(config.tokens), f"{count / 1e6:.2f}", *figures))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else 400))
