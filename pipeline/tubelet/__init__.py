"""tubelet: turn a bucket of videos into labels."""

from tubelet._version import __version__

__all__ = ["__version__"]
