"""The corpus of ``tubelet demo``: small H.264 files of moving shapes whose class is the motion alone.

Each video looks through a fixed window at a field of shapes that moves as one: left, right, up, down,
clockwise or anticlockwise. The field is a homogeneous Poisson process of shapes with uniformly random
orientations, which no translation and no rotation changes in distribution. A single frame, whatever its
index, is therefore drawn from one and the same distribution for all six classes: only several frames tell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise")
# Unit vectors (x, y) in image coordinates: y grows downwards, so a positive angle turns clockwise.
_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_TURNS = {"clockwise": 1.0, "anticlockwise": -1.0}

_SIZES = ((64, 64), (80, 64), (64, 80))  # (width, height) in pixels
_RATES = (12, 15, 20, 24, 25)  # frames per second
_FRAMES = (16, 20)  # frames of a video, both ends possible
_SIDES = (3, 4, 5, 48)  # triangle, square, pentagon, and near enough a disc
_SHAPES_PER_WINDOW = 9.0  # expected number of shapes in a square of the short side
_RADIUS = (0.07, 0.13)  # of the short side
_SPEED = (0.025, 0.045)  # of the short side, per frame
_ARM = 0.3  # at this distance from its centre (of the short side) a turning field moves at the speed above
_TILT_RAD = 0.2  # a translation is off its axis by up to this

Float = npt.NDArray[np.floating]
Single = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Corpus:
    """What :func:`write_corpus` wrote; paths are relative to its folder, with ``/``."""

    labelled: dict[str, str]
    """Path of each labelled video -> its motion."""
    inbox: dict[str, str]
    """Path of each good unlabelled video -> its motion, which nothing in the folder tells."""
    broken: tuple[str, ...]
    """Paths in the inbox of files that are not, or no longer, videos."""


def write_corpus(
    folder: str | Path, *, per_class: int = 50, inbox: int = 24, broken: int = 4, seed: int = 0
) -> Corpus:
    """Write ``labelled/<motion>/….mp4``, ``labels.csv`` and ``inbox/….mp4`` below ``folder``.

    The same arguments write the same bytes. ``labels.csv`` has the columns ``path`` (relative to
    ``labelled``) and ``label``. Broken files are truncated, garbage, a text and empty, in turn. Some names
    have spaces and letters outside ASCII.
    """
    root = Path(folder)
    labelled = {}
    for number in range(per_class * len(MOTIONS)):
        motion = MOTIONS[number % len(MOTIONS)]
        labelled[f"labelled/{motion}/{_name(number)}"] = motion
    pick = np.random.default_rng([seed, 0])
    unlabelled = {f"inbox/{_name(number)}": MOTIONS[pick.integers(len(MOTIONS))] for number in range(inbox)}
    for number, (path, motion) in enumerate([*labelled.items(), *unlabelled.items()]):
        _write(root / path, encode(*render(motion, np.random.default_rng([seed, 1, number]))))
    _write_labels(root / "labels.csv", labelled)
    bad = _broken_files(broken, np.random.default_rng([seed, 2]))
    for path, data in bad.items():
        _write(root / path, data)
    return Corpus(labelled, unlabelled, tuple(bad))


def render(motion: str, rng: np.random.Generator, *, frames: int | None = None) -> tuple[Frames, int]:
    """Draw one video of ``motion``.

    Everything but the motion is drawn from ``rng`` in the same order for all classes.

    Returns:
        Frames, uint8 ``(T, H, W, 3)`` in RGB, and the frame rate in frames per second.

    Raises:
        KeyError: ``motion`` is not one of :data:`MOTIONS`.
    """
    width, height = _SIZES[rng.integers(len(_SIZES))]
    rate = _RATES[rng.integers(len(_RATES))]
    count = int(rng.integers(_FRAMES[0], _FRAMES[1] + 1)) if frames is None else frames
    side = min(width, height)
    travel = rng.uniform(*_SPEED) * side * np.arange(count)
    tilt = rng.uniform(-_TILT_RAD, _TILT_RAD)
    centre = np.array([width, height]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
    field = _Field.draw(rng, centre, side, reach=float(np.hypot(width, height)) * 0.7 + travel[-1])
    if motion in _TURNS:
        places, angles = field.turned(centre, _TURNS[motion] * travel / (_ARM * side))
    else:
        places, angles = field.moved(_rotate(np.array(_DIRECTIONS[motion]), tilt), travel)
    canvas = np.repeat(_background(rng, height, width)[None], count, axis=0)
    return _paint(canvas, field, places, angles), rate


def encode(frames: Frames, rate: int) -> bytes:
    """An MP4 of ``frames`` (uint8 ``(T, H, W, 3)``): H.264 with B-frames, the same bytes for the same frames.

    The quantiser is fine: coarse coding leaves a trail behind what moves, and a trail is motion in one frame.
    """
    out = io.BytesIO()
    # With x264's macroblock tree the bytes differ from call to call where a processor has AVX-512.
    options = {"preset": "veryfast", "crf": "12", "bf": "2", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


@dataclass(frozen=True)
class _Field:
    """Shapes of a Poisson process on a square that covers the window during the whole motion."""

    places: Float  # (N, 2) x, y in pixels at the first frame
    angles: Float  # (N,)
    radii: Float  # (N,)
    sides: npt.NDArray[np.int64]  # (N,)
    colours: Float  # (N, 3)

    @staticmethod
    def draw(rng: np.random.Generator, centre: Float, side: int, reach: float) -> _Field:
        half = reach + 2 * _RADIUS[1] * side
        count = int(rng.poisson(_SHAPES_PER_WINDOW * (2 * half / side) ** 2))
        hues = rng.uniform(0.4, 1.0, (count, 3))
        return _Field(
            places=centre + rng.uniform(-half, half, (count, 2)),
            angles=rng.uniform(0, 2 * np.pi, count),
            radii=rng.uniform(*_RADIUS, count) * side,
            sides=rng.choice(_SIDES, count),
            colours=255 * hues / hues.max(axis=1, keepdims=True),
        )

    def moved(self, direction: Float, travel: Float) -> tuple[Float, Float]:
        places = self.places[None] + travel[:, None, None] * direction
        return places, np.broadcast_to(self.angles, places.shape[:2])

    def turned(self, centre: Float, turns: Float) -> tuple[Float, Float]:
        arms = (self.places - centre)[None]
        return centre + _rotate(arms, turns[:, None]), self.angles[None] + turns[:, None]


def _rotate(points: Float, angle: Float | float) -> Float:
    x, y = points[..., 0], points[..., 1]
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=-1)


def _background(rng: np.random.Generator, height: int, width: int) -> Single:
    """A dark, still texture, float ``(H, W, 3)``: coarse blots of any colour and fine grain."""
    coarse = rng.uniform(0, 90, (height // 16, width // 16, 3))
    blots = coarse.repeat(16, axis=0).repeat(16, axis=1)
    return (blots + rng.normal(0, 6, (height, width, 3))).astype(np.float32)


def _paint(canvas: Single, field: _Field, places: Float, angles: Float) -> Frames:
    """Lay the shapes over ``canvas`` (T, H, W, 3), later ones over earlier ones, with soft edges."""
    height, width = canvas.shape[1:3]
    margin = int(np.ceil(field.radii.max(initial=0))) + 2
    size = 2 * margin + 1
    pixels = np.round(places).astype(np.int64)
    seen = ((pixels >= -margin) & (pixels < np.array([width, height]) + margin)).all(axis=-1)
    frame, shape = np.nonzero(seen)
    alphas = _stamps(field, shape, places[frame, shape] - pixels[frame, shape], angles[frame, shape], margin)
    padded = np.pad(canvas, [(0, 0), (size, size), (size, size), (0, 0)])
    colours = field.colours.astype(np.float32)
    for t, n, alpha in zip(frame, shape, alphas, strict=True):
        x, y = pixels[t, n] + size - margin
        patch = padded[t, y : y + size, x : x + size]
        patch += alpha[..., None] * (colours[n] - patch)
    inside = padded[:, size : size + height, size : size + width]
    return (np.clip(inside, 0, 255) + 0.5).astype(np.uint8)


def _stamps(
    field: _Field, shape: npt.NDArray[np.int64], offsets: Float, angles: Float, margin: int
) -> Single:
    """Coverage in [0, 1] of each shape on its own grid, ``(V, 2 * margin + 1, 2 * margin + 1)``."""
    axis = np.arange(-margin, margin + 1, dtype=np.float32)
    x = axis[None, None, :] - _column(offsets[:, 0])
    y = axis[None, :, None] - _column(offsets[:, 1])
    wedge = _column(2 * np.pi / field.sides[shape])
    turn = (np.arctan2(y, x) - _column(angles)) / wedge
    within = (turn - np.floor(turn) - 0.5) * wedge  # from the middle of the side it falls on
    edge = np.hypot(x, y) * np.cos(within) - _column(field.radii[shape]) * np.cos(wedge / 2)
    coverage: Single = np.clip(0.5 - edge, 0, 1)
    return coverage


def _column(values: Float) -> Single:
    return values.astype(np.float32)[:, None, None]


def _name(number: int) -> str:
    return f"été {number:04d}.mp4" if number % 20 == 7 else f"{number:04d}.mp4"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_labels(path: Path, labelled: dict[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows((name.removeprefix("labelled/"), label) for name, label in labelled.items())


def _broken_files(count: int, rng: np.random.Generator) -> dict[str, bytes]:
    whole = encode(*render("left", rng))
    kinds: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: whole[: len(whole) // 3],
        "garbage": lambda: rng.bytes(4096),
        "text": lambda: b"This is a note, not a video.\n" * 40,
        "empty": lambda: b"",
    }
    names = [list(kinds)[number % len(kinds)] for number in range(count)]
    return {f"inbox/broken {number:02d} {kind}.mp4": kinds[kind]() for number, kind in enumerate(names)}
