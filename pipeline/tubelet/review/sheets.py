"""Strips of frames on sheets beside the page, so that a page of ten thousand rows opens at once."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tubelet import storage
from tubelet.inference.strips import Strip
from tubelet.storage import StorageOptions

_QUALITY = 78
_NAME = re.compile(r"strips-[0-9a-f]+-\d+\.jpg")
STRIPS_PER_SHEET = 20


@dataclass(frozen=True)
class SheetWriter:
    """Writes sheets of twenty strips, one below the other, in the order of the rows.

    Attributes:
        folder: where they go.
        version: part of their names: a page that is made anew does not show an older one's pictures.
    """

    folder: str
    version: str
    options: StorageOptions

    def place(self, strips: Iterable[Strip]) -> Iterator[dict[str, Any]]:
        """Where each strip is, in order: what the page's row has of it. Sheets are written as they fill."""
        pending: list[Strip] = []
        number = 0
        for strip in strips:
            pending.append(strip)
            if len(pending) == STRIPS_PER_SHEET:
                yield from self._write(number, pending)
                number, pending = number + 1, []
        yield from self._write(number, pending)

    def _write(self, number: int, strips: Sequence[Strip]) -> Iterator[dict[str, Any]]:
        sizes = [strip.size for strip in strips if strip.jpeg is not None and strip.size is not None]
        if not sizes:
            yield from ({"missing": strip.missing} for strip in strips)
            return
        width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
        sheet = Image.new("RGB", (width, height * len(sizes)), (255, 255, 255))
        name, cell = f"strips-{self.version}-{number:05d}.jpg", 0
        found: list[dict[str, Any]] = []
        for strip in strips:
            if strip.jpeg is None or strip.size is None:
                found.append({"missing": strip.missing})
                continue
            sheet.paste(Image.open(io.BytesIO(strip.jpeg)), (0, cell * height))
            place = {"name": name, "at": cell, "of": len(sizes), "width": width, "height": height}
            found.append({"sheet": place, "size": strip.size})
            cell += 1
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=_QUALITY)
        storage.write_bytes(storage.join(self.folder, name), buffer.getvalue(), self.options)
        yield from found

    def delete_others(self) -> None:
        """Delete the sheets of earlier pages."""
        for name in storage.list_names(self.folder, self.options):
            if _NAME.fullmatch(name) and not name.startswith(f"strips-{self.version}-"):
                storage.delete(storage.join(self.folder, name), self.options)
