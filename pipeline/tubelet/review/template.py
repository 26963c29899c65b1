"""The page as HTML: its scripts and styles are files of their own here, and parts of it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from tubelet.plain_json import plain

# In the order in which they run.
_PARTS = ("dom", "rows", "corrections", "cards", "charts", "likeness", "compare", "main")
SCRIPTS = tuple(f"{name}.js" for name in _PARTS)


def render(
    *,
    title: str,
    origin: str,
    tiles: Sequence[tuple[str, str]],
    notes: Sequence[str],
    data: Mapping[str, Any],
) -> str:
    """The page's HTML. All text is escaped, and the page forbids itself anything from elsewhere.

    Args:
        tiles: names and values of the figures at its head.
        data: what the scripts work on; ``videos`` may have links, whose servers the page may play from.
    """
    loader = jinja2.PackageLoader("tubelet.review", "static")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html.j2")
    source = loader.get_source
    environment = template.environment
    return template.render(
        title=title,
        origin=origin,
        tiles=tiles,
        notes=notes,
        media=" ".join(sorted(_servers(data["videos"]))),
        style=Markup(source(environment, "page.css")[0]),  # noqa: S704  # our own file
        script=Markup("\n".join(source(environment, name)[0] for name in SCRIPTS)),  # noqa: S704
        data=plain(data),
    )


def _servers(videos: Sequence[Mapping[str, Any]]) -> set[str]:
    found = {urlsplit(video["link"]) for video in videos if video.get("link")}
    return {f"{link.scheme}://{link.netloc}" for link in found if link.scheme in ("http", "https")}
