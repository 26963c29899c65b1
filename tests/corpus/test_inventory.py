"""A listing that exists already takes the place of listing the bucket."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tubelet.config import UserError
from tubelet.corpus.inventory import read_inventory
from tubelet.storage import DEFAULT_OPTIONS


def _paths(file: Path, src: str = "s3://b/videos") -> list[tuple[str, str, int]]:
    return [(one.path, one.etag, one.size_bytes) for one in read_inventory(str(file), src, DEFAULT_OPTIONS)]


WANTED = [("a b.mp4", "e1", 10), ("k/c.mp4", "e2", 20)]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_s3_inventory_report(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    keys = ["videos/a b.mp4", "videos/k/c.mp4", "videos/old.mp4", "videos/folder/", "other/d.mp4"]
    latest = [True, True, False, True, True]
    etags, sizes = ["e1", "e2", "e3", "e4", "e5"], [10, 20, 30, 0, 40]
    if kind == "CSV":
        text = io.StringIO()
        for key, size, etag, is_latest in zip(keys, sizes, etags, latest, strict=True):
            row = ["b", key.replace(" ", "+"), "v1", str(is_latest).lower(), "false", size, etag]
            csv.writer(text, quoting=csv.QUOTE_ALL).writerow(row)
        (tmp_path / "data" / "part.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
        name, schema = "part.csv.gz", "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag"
    else:
        columns = {"bucket": ["b"] * 5, "key": keys, "is_latest": latest, "size": sizes, "e_tag": etags}
        pq.write_table(pa.table(columns), tmp_path / "data" / "part.parquet")
        name, schema = "part.parquet", "message s3.inventory { required binary bucket (UTF8); }"
    report = {"fileFormat": kind, "fileSchema": schema, "destinationBucket": "arn:aws:s3:::inv"}
    report |= {"files": [{"key": f"b/conf/data/{name}", "size": 1}]}
    (tmp_path / "manifest.json").write_text(json.dumps(report))
    assert _paths(tmp_path / "manifest.json") == WANTED


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(
        'uri,size,etag\ns3://b/videos/a b.mp4,10,"e1"\ns3://b/videos/k/c.mp4,20,e2\n'
    )
    assert _paths(tmp_path / "l.csv") == WANTED
    with pytest.raises(UserError, match="none of the 2 objects"):
        _paths(tmp_path / "l.csv", "s3://b/elsewhere")
    (tmp_path / "l.csv").write_text("uri,bytes\ns3://b/videos/a,1\n")
    with pytest.raises(UserError, match="is no listing: its columns are 'uri', 'bytes'"):
        _paths(tmp_path / "l.csv")


def test_files_without_a_header(tmp_path: Path) -> None:
    """The files of an S3 Inventory report name no columns; which there are was chosen by who set it up."""
    file, etag = tmp_path / "l.csv", "d41d8cd98f00b204e9800998ecf8427e"
    file.write_text(f"s3://b/videos/a b.mp4,10,e1\ns3://b/videos/k/c.mp4,20,{etag}-3\n")
    assert _paths(file) == [("a b.mp4", "e1", 10), ("k/c.mp4", f"{etag}-3", 20)]
    rows = [("videos/a%20b.mp4", 10, etag), ("videos/k/c%2Bd.mp4", 20, f"{etag}-3")]
    wanted = [("a b.mp4", etag, 10), ("k/c+d.mp4", f"{etag}-3", 20)]
    text = "".join(
        f'"b","{key}","{size}","2024-01-02T03:04:05.000Z","{tag}","STANDARD"\n' for key, size, tag in rows
    )
    file.write_bytes(gzip.compress(text.encode()))
    assert _paths(file) == wanted
    text = "".join(f'"b","{key}","v","true","false","{size}","{tag}","false"\n' for key, size, tag in rows)
    file.write_text(
        text
        + '"b","videos/old.mp4","v","false","false","30","e"\n"b","videos/gone","v","true","true","",""\n'
    )
    assert _paths(file) == wanted
    with pytest.raises(UserError, match="is no listing"):
        _paths(file, "s3://another/videos")


def test_reports_in_a_format_that_is_not_read(tmp_path: Path) -> None:
    report = {"fileFormat": "ORC", "fileSchema": "struct<bucket:string>", "files": [{"key": "data/a.orc"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(report | {"destinationBucket": "arn:aws:s3:::inv"}))
    with pytest.raises(UserError, match="report in ORC: only CSV and Parquet are read"):
        _paths(tmp_path / "manifest.json")
