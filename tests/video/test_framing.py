"""Placing pictures: sizes as the paper's reader has them, crops inside the picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tubelet.video import Box, JitterCrop, ResizedCrop, ShortSide, Stretch
from tubelet.video.picture import Orientation

sides = st.integers(1, 5000)
units = st.floats(0, 1, exclude_max=True)
fours = st.tuples(units, units, units, units)
rules = st.one_of(
    st.builds(
        lambda s, c, p, r: ShortSide(s, min(s, c), p, r), st.integers(1, 512), sides, units, st.booleans()
    ),
    st.builds(lambda c: ShortSide(None, c), st.integers(1, 512)),
    st.builds(Stretch, st.integers(1, 512), st.integers(1, 512)),
    st.builds(
        lambda s, u, f: JitterCrop(s, max(1, s * 7 // 8), (0.9, 1.33), u, f),
        st.integers(1, 512),
        fours,
        st.booleans(),
    ),
    st.builds(lambda s, u: ResizedCrop(s, (0.08, 1.0), (0.75, 1.33), u), st.integers(1, 512), fours),
)


@given(sides, sides, rules)
def test_every_part_lies_inside(height, width, rule):
    placed = rule.place(height, width)
    assert placed.source.top + placed.source.height <= height
    assert placed.source.left + placed.source.width <= width
    assert placed.crop.top + placed.crop.height <= placed.height
    assert placed.crop.left + placed.crop.width <= placed.width


@given(sides, sides, st.integers(1, 512))
def test_the_short_side_is_what_was_asked(height, width, short_side):
    placed = ShortSide(short_side).place(height, width)
    assert min(placed.height, placed.width) == short_side
    assert placed.size == (placed.height, placed.width)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 340, (256, 340)), (720, 1280, (256, 455)), (480, 270, (455, 256)), (97, 96, (258, 256))],
)
def test_sizes_round_down(height, width, size):
    assert ShortSide(256).place(height, width).size == size


def test_three_crops_round_up_and_one_rounds_down():
    assert ShortSide(36, 31).place(36, 54).crop == Box(2, 11, 31, 31)
    assert ShortSide(36, 31, 0.5, ceil=True).place(36, 54).crop == Box(3, 12, 31, 31)
    assert ShortSide(36, 31, 1.0, ceil=True).place(36, 54).crop == Box(3, 23, 31, 31)
    assert ShortSide(36, 32, 1.0, ceil=True).place(54, 36).crop == Box(22, 2, 32, 32)


def test_a_picture_smaller_than_the_crop_is_enlarged():
    assert ShortSide(None, 224).place(96, 128).size == (224, 224)


def test_a_crop_larger_than_the_short_side_is_refused():
    with pytest.raises(ValueError, match="crop 224 is larger than short_side 128"):
        ShortSide(128, 224)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_a_part_of_the_shown_picture_is_found_in_the_coded_one(transpose, rows, columns):
    turn = Orientation(transpose, rows, columns)
    coded = np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3)
    shown = turn.apply(coded)
    assert shown.shape[:2] == turn.size(6, 10)
    box = Box(1, 2, 3, 2)
    there = turn.coded_box(box, *shown.shape[:2])
    part = coded[there.top : there.top + there.height, there.left : there.left + there.width]
    assert (turn.apply(part) == shown[1:4, 2:4]).all()
