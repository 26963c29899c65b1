"""The names that people give to the three usual splits."""

from __future__ import annotations

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}


def normalise_split(name: str) -> str:
    """``train``, ``val`` or ``test`` for what means it (``Training``, ``dev``, ``eval``); else ``name``."""
    return _SPLIT_OF.get(name.strip().casefold(), name)


def is_split_word(name: str) -> bool:
    """Whether ``name`` is one of the usual words for training, validation or test."""
    return name.strip().casefold() in _SPLIT_OF
