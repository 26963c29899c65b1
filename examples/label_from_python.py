"""Label videos in this process with a trained model: no Ray, no output to manage.

    python examples/label_from_python.py MODEL VIDEO...

MODEL is a `train --out` folder, `models:/NAME@ALIAS` or `runs:/ID`. Each row is what `tubelet label` would
write; a video that fails is a row with its reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tubelet


def main(model: str, videos: Sequence[str]) -> None:
    """Print a line per video."""
    with tubelet.load(model) as classifier:
        for row in classifier.predict(videos, views="1x3"):
            if row["status"] == "ok":
                print(f"{row['uri']}: {row['label']} ({row['score']:.0%})")
            else:
                print(f"{row['uri']}: {row['error_code']}: {row['error']}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
