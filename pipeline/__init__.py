"""tubelet: turn a bucket of videos into labels."""

__version__ = "0.1.0"
