"""``tubelet bench decode``: its rows, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tubelet.config import UserError, load_settings
from tubelet.video import probe
from tubelet_jobs import bench
from tubelet_jobs.bench import BenchCommand, BenchOptions
from tubelet_jobs.benches import decode, decode_corpus


def test_rows_have_what_readers_rely_on(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(2):
        recipe = decode_corpus.Recipe(str(number), "h264", "libx264", 320, 240, 40, frames=80)
        decode_corpus.make(recipe, folder)
    (folder / "notes.txt").write_text("no video")
    out = tmp_path / "rows.jsonl"
    decode._MAX_ROUNDS, keep = 2, decode._MAX_ROUNDS
    try:
        options = {"kind": "decode", "vs": ("pyav",), "json_file": str(out), "videos": str(folder)}
        bench.command(load_settings(BenchCommand, options))
    finally:
        decode._MAX_ROUNDS = keep
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["peer"] for row in rows} == {"tubelet", "tubelet-sandbox", "pyav", "limit"}
    assert {row["sampling"] for row in rows} == {"uniform32", "dense32x2", "views4"}
    for row in rows:
        assert row["bench"] == "decode"
        assert row["codec"] == "h264"
        assert row["clips_per_s"] > 0
        assert row["ratio_to_limit"] > 0
        if row["peer"] != "limit":
            assert row["frames_agree"] is True
        if row["peer"] == "pyav":
            assert row["ratio_to_best_peer"] == pytest.approx(1)
    assert sum(row["video"] == "geometric mean" for row in rows) == 12
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == len(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BenchOptions(vs=("decrod",)), "--vs decrod: no such peer here; choose from decord2"),
        (BenchOptions(vs=("pyav",), videos="/nowhere"), "--videos /nowhere: no such folder"),
    ],
)
def test_mistakes_are_named(options: BenchOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode.run(options)


def test_a_missing_peer_fails_unless_left_out(monkeypatch, tmp_path: Path) -> None:
    recipe = decode_corpus.Recipe("small", "h264", "libx264", 96, 64, 16, frames=16, repeat=1)

    def absent() -> None:
        raise ImportError("No module named 'decord'")

    monkeypatch.setitem(decode.decode_peers.PEERS, "absent", absent)
    with pytest.raises(UserError, match="the peer absent cannot be used"):
        decode.run(BenchOptions(vs=("absent",), videos=str(decode_corpus.make(recipe, tmp_path).parent)))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="no bench 'dekode': choose from decode"):
        load_settings(BenchCommand, {"kind": "dekode"})


def test_made_videos_are_what_their_names_say(tmp_path: Path) -> None:
    recipe = decode_corpus.Recipe("small", "h264", "libx264", 96, 64, 16, frames=48, repeat=2)
    info = probe(decode_corpus.make(recipe, tmp_path))
    assert (info.codec, info.width, info.height, info.frames, info.fps) == (
        "h264",
        96,
        64,
        96,
        pytest.approx(30),
    )
    assert info.keyframes_s == pytest.approx([16 / 30 * i for i in range(6)])
