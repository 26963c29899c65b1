"""What became of every weight when a model was filled from somewhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """What became of each parameter of the model, and of each array of the source.

    Every parameter stands in one of the first three, every array is used or left over. `loaded`: parameter to
    the source's name, taken as it is (up to layout). `adapted`: parameter to how it was made from the source.
    `initialised`: parameter to why it keeps its own start. `left_over`: the
    source's name to why it was not used. `notes`: anything else worth knowing. `str()` is a table for
    people.
    """

    source: str
    loaded: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {len(self.loaded)} parameters loaded, {len(self.adapted)} adapted, "
            f"{len(self.initialised)} initialised; {len(self.left_over)} arrays of the source left over"
        ]
        for state in ("adapted", "initialised", "left_over"):
            lines += _rows(state.replace("_", " "), getattr(self, state).items())
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_dict(self) -> dict[str, object]:
        """Plain values, fit for JSON."""
        return dict(vars(self))


def _rows(state: str, entries: Iterable[tuple[str, str]]) -> list[str]:
    """One line per name and reason, layers of one kind taken together."""
    groups: dict[tuple[str, str], int] = {}
    for name, reason in entries:
        key = (re.sub(r"(?<=[._])\d+(?=[./])", "*", name), reason)
        groups[key] = groups.get(key, 0) + 1
    width = max((len(name) for name, _ in groups), default=0)
    return [
        f"  {state:<11}  {name:<{width}}  {count:>3} x  {reason}" for (name, reason), count in groups.items()
    ]
