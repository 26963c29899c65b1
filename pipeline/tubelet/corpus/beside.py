"""Where what belongs to a manifest lies, and is not for those that read it as a table."""

from __future__ import annotations

from tubelet import storage


def beside(out: str, name: str) -> str:
    """The place of ``name`` for the manifest ``out``: a folder's readers skip what begins with ``_``."""
    return storage.join(notes_folder(out), name)


def notes_folder(out: str) -> str:
    """The folder of what :func:`beside` names."""
    if out.endswith(".parquet"):
        return storage.join(storage.parent(out), f"_{storage.name_of(out)}.notes")
    return storage.join(out, "_notes")


def report_of(out: str) -> str:
    """The place of the page about the manifest ``out``."""
    if out.endswith(".parquet"):
        return out.removesuffix(".parquet") + ".report.html"
    return storage.join(out, "_report.html")
