"""Hashes that tell rows apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from tubelet.corpus.digests import digests

TEXTS = ["", "a", "a\0", "\0", "b", "abcdefgh", "abcdefgh\0", "abcdefghi", "x" * 100, "é", "12" * 12, None]


def test_a_row_has_one_hash_wherever_it_stands() -> None:
    together = digests(TEXTS)
    assert len(np.unique(together)) == len(TEXTS)
    assert np.concatenate([digests([text]) for text in TEXTS if text is not None]).tolist() == (
        together[:-1].tolist()
    )
    column = pa.chunked_array([pa.array(["before", *TEXTS]).slice(1), pa.array(TEXTS[::-1])])
    expected = [*together, *together[::-1]]
    assert digests(column).tolist() == expected
    assert digests(column.dictionary_encode()).tolist() == expected
    assert digests(column.cast(pa.string_view())).tolist() == expected


def test_numbers_and_the_order_of_columns_count() -> None:
    numbers = list(range(-1000, 1000))
    assert len(np.unique(digests(numbers))) == len(numbers)
    assert digests(pa.array([1, None], pa.int32())).tolist() == digests([1, 0]).tolist()
    assert digests(["a"], ["b"])[0] != digests(["b"], ["a"])[0]
    assert digests(["a"], [1])[0] != digests(["a"], [2])[0]
    assert len(digests([])) == 0


def test_many_texts_of_many_lengths_are_told_apart() -> None:
    texts = [f"{'some/folder/' * (i % 7)}video-{i}.mp4" for i in range(200_000)]
    found = digests(texts)
    assert len(np.unique(found)) == len(texts)
    # Each bit of the hash is set in half of them.
    shares = [float(np.mean(found >> np.uint64(bit) & np.uint64(1))) for bit in range(64)]
    assert max(abs(share - 0.5) for share in shares) < 0.01
