"""The page about a corpus: its counts, an example of each error, duplicates, what was left out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from support.corpus import put_text, run_index
from support.labelling import write_corpus
from tubelet.review.corpus_page import corpus_page


def text_of(page: str) -> str:
    body = page.partition("<body>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_page_tells_what_there_is(tmp_path: Path) -> None:
    videos, out = write_corpus(tmp_path / "videos", 4, broken=[2]), str(tmp_path / "manifest")
    shutil.copy(videos / "v00001.mp4", videos / "v1-twin.mp4")
    (videos / ".hidden.mp4").write_bytes(b"x")
    (videos / "notes.txt").write_text("no video at all")
    labels = put_text(
        str(tmp_path / "l.csv"), "path,label,split", "v00000.mp4,<b>run,train", "v00001.mp4,walk,train"
    )
    summary = run_index(str(videos), out, labels=(labels,), duplicates="exact")
    page = corpus_page(out, summary.to_dict())
    said = text_of(page)
    for wanted in (
        "videos 4",
        "errors 1",
        "duplicates 1",
        "&lt;b&gt;run 1",
        "walk 1",
        "train 2",
        "h264 4",
        "0 to 144 px 4",
        "1 to 2 s 4",
        "1 open_error v00002.mp4",
        "v1-twin.mp4 v00001.mp4",
        "1 content and name say that it is no video",
        "1 skipped: names and folders with `.` or `_`",
    ):
        assert wanted in said, wanted
    assert "<b>run" not in page
