"""Local folders and S3 behave alike: names, ranges, conditional writes, errors."""

from __future__ import annotations

import io
import os
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import S3Bucket
from support.corpus import ODD_NAMES, put
from tubelet import storage
from tubelet.config import UserError
from tubelet.ranges import RangedReader
from tubelet.storage import ObjectChangedError, StorageOptions, list_objects
from tubelet.storage.opener import ObjectOpener


def _paths(root: str, include: str | None = None) -> list[str]:
    return sorted(info.path for info in list_objects(root, include=include))


def test_odd_names_survive_the_round_trip(root: str) -> None:
    put(root, {name: name.encode() for name in ODD_NAMES})
    listed = {info.path: info for info in list_objects(root)}
    assert set(listed) == set(ODD_NAMES)
    for name, info in listed.items():
        assert storage.read_bytes(info.uri) == name.encode()
        assert ObjectOpener(info.uri, info.size_bytes, info.etag)().read() == name.encode()
        assert storage.stat(info.uri) == storage.ObjectInfo(
            info.uri, name.rpartition("/")[2], info.etag, info.size_bytes
        )
        filesystem, path = storage.filesystem(info.uri)
        assert filesystem.open_input_file(path).read() == name.encode()


def test_hidden_names_do_not_count(root: str) -> None:
    put(root, dict.fromkeys(["a/x", ".git/x", "_tmp/x", "a/_y", "a/.z", "b/_c/d", "e_f/g.h"], b"1"))
    put(root, dict.fromkeys(["a/_SUCCESS", "a/_committed_12", "_metadata", "c/_SUCCESS.mp4"], b"1"))
    assert _paths(root) == ["a/_y", "a/x", "c/_SUCCESS.mp4", "e_f/g.h"]


def test_hidden_parts_above_src_do_count(root: str) -> None:
    put(root, {"_private/a.mp4": b"1"})
    assert _paths(f"{root}/_private") == ["a.mp4"]


def test_include_matches_name_or_path(root: str) -> None:
    put(root, dict.fromkeys(["a/x.mp4", "a/b/y.mp4", "a/x.txt"], b"1"))
    assert _paths(root, "*.mp4") == ["a/b/y.mp4", "a/x.mp4"]
    assert _paths(root, "a/b/*") == ["a/b/y.mp4"]


def test_one_object_is_a_corpus_too(root: str) -> None:
    put(root, {"a/x.mp4": b"1"})
    assert _paths(f"{root}/a/x.mp4") == ["x.mp4"]


def test_prefix_is_a_folder_not_a_beginning(root: str) -> None:
    put(root, {"run/1": b"1", "runner/2": b"1"})
    assert _paths(f"{root}/run") == ["1"]


def test_listing_goes_on_beyond_one_page(s3: S3Bucket) -> None:
    names = [f"{i:04d}" for i in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"{s3.uri}/{name}", b"x"), names))
    assert [info.path for info in list_objects(s3.uri)] == names


def test_folder_markers_are_no_objects(s3: S3Bucket) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/folder/", Body=b"")
    put(s3.uri, {"folder/a": b"1"})
    assert _paths(s3.uri) == ["folder/a"]


def test_put_if_absent_has_one_winner(root: str) -> None:
    start = threading.Barrier(8)

    def contend(i: int) -> bool:
        start.wait()
        return storage.put_if_absent(f"{root}/lock", str(i).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(f"{root}/lock") == str(won.index(True)).encode()


def test_put_if_unchanged_knows_the_content(root: str) -> None:
    storage.write_bytes(f"{root}/x", b"one")
    data, etag = storage.read_version(f"{root}/x")
    assert data == b"one"
    assert storage.put_if_unchanged(f"{root}/x", b"two", etag)
    assert not storage.put_if_unchanged(f"{root}/x", b"three", etag)
    assert storage.read_bytes(f"{root}/x") == b"two"
    assert not storage.put_if_unchanged(f"{root}/not there", b"x", etag)
    with pytest.raises(FileNotFoundError):
        storage.read_version(f"{root}/not there")


def test_put_if_unchanged_has_one_winner(s3: S3Bucket) -> None:
    storage.write_bytes(f"{s3.uri}/x", b"first")
    etag, start = storage.read_version(f"{s3.uri}/x")[1], threading.Barrier(8)

    def contend(i: int) -> bool:
        start.wait()
        return storage.put_if_unchanged(f"{s3.uri}/x", str(i).encode(), etag)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(f"{s3.uri}/x") == str(won.index(True)).encode()


def test_etag_changes_with_content(root: str) -> None:
    etags = []
    for content in (b"one", b"two", b"other"):
        storage.write_bytes(f"{root}/x", content)
        found = storage.stat(f"{root}/x")
        assert found is not None
        etags.append(found.etag)
    assert len(set(etags)) == 3


def test_exists_names_and_delete(root: str) -> None:
    assert not storage.exists(root)
    assert storage.list_names(root) == []
    put(root, {"a": b"1", "_b/c": b"2", ".d/e/f": b"3"})
    assert storage.list_names(root) == [".d", "_b", "a"]
    assert storage.list_folders(root) == [".d", "_b"]
    assert storage.exists(root)
    assert storage.exists(f"{root}/.d/e")
    storage.delete(f"{root}/a")
    storage.delete(f"{root}/a")
    assert storage.stat(f"{root}/a") is None
    storage.delete_tree(f"{root}/.d")
    storage.delete_tree(f"{root}/nothing")
    assert [p for p in storage.list_names(root) if storage.exists(f"{root}/{p}")] == ["_b"]


def test_directories_travel_whole(root: str, tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    (source / "x" / "_y").mkdir(parents=True)
    (source / "x" / "_y" / "a b.bin").write_bytes(b"1" * 1000)
    (source / "top").write_bytes(b"2")
    storage.upload_dir(source, f"{root}/up")
    storage.download_dir(f"{root}/up", target)
    assert (target / "x" / "_y" / "a b.bin").read_bytes() == b"1" * 1000
    assert (target / "top").read_bytes() == b"2"


def test_upload_larger_than_one_part(s3: S3Bucket, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(40 * 1024 * 1024)
    (tmp_path / "big").write_bytes(content)
    storage.upload_file(tmp_path / "big", f"{s3.uri}/big")
    storage.download_file(f"{s3.uri}/big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_reads_are_ranged_and_counted(s3: S3Bucket) -> None:
    content = random.Random(1).randbytes(8 * 1024 * 1024)
    storage.write_bytes(f"{s3.uri}/big", content)
    info = storage.stat(f"{s3.uri}/big")
    assert info is not None
    opener = pickle.loads(pickle.dumps(ObjectOpener(info.uri, info.size_bytes, info.etag)))
    file = opener()
    assert isinstance(file, RangedReader)
    head = file.read(100)
    file.seek(-100, io.SEEK_END)
    assert head + file.read(200) == content[:100] + content[-100:]
    assert file.bytes_fetched <= 1024 * 1024
    file.seek(0)
    assert file.read() == content
    assert file.requests < 12, "sequential reading takes growing ranges"


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 12_345])
def test_ranged_reader_equals_a_file(size: int) -> None:
    content = random.Random(size).randbytes(size)
    reader = RangedReader(lambda start, stop: content[start:stop], size, block_bytes=100, cached_blocks=4)
    plain = io.BytesIO(content)
    generator = random.Random(2)
    for _ in range(300):
        if generator.random() < 0.5:
            offset = generator.randrange(size + 50)
            assert reader.seek(offset) == plain.seek(offset)
        else:
            count = generator.choice([1, 7, 100, 950, 5000])
            assert reader.read(count) == plain.read(count)
        assert reader.tell() == plain.tell()


def test_changed_object_is_not_read_as_the_old_one(root: str) -> None:
    put(root, {"x": b"1" * 10})
    info = storage.stat(f"{root}/x")
    assert info is not None
    put(root, {"x": b"2" * 11})
    with pytest.raises(ObjectChangedError, match="changed since it was listed"):
        ObjectOpener(info.uri, info.size_bytes, info.etag)().read(1)


def test_gone_object_is_file_not_found(root: str) -> None:
    put(root, {"x": b"1", "y": b"2"})
    info = storage.stat(f"{root}/x")
    assert info is not None
    storage.delete(info.uri)
    with pytest.raises(FileNotFoundError):
        ObjectOpener(info.uri, info.size_bytes, info.etag)().read(1)
    with pytest.raises(FileNotFoundError):
        ObjectOpener(info.uri)()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(info.uri)


def test_nothing_there_is_a_user_error(root: str) -> None:
    with pytest.raises(UserError, match=r"does not exist|nothing under"):
        list(list_objects(f"{root}/none"))


def test_missing_bucket_is_named(s3: S3Bucket) -> None:
    with pytest.raises(UserError, match=r"no bucket 'not-there-at-all'"):
        list(list_objects(f"s3://not-there-at-all/{s3.prefix}"))


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")]
)
def test_wrong_credentials(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    put(s3.uri, {"x": b"1"})
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"AWS_ACCESS_KEY_ID.*--anonymous"):
        list(list_objects(s3.uri))
    with pytest.raises(PermissionError):
        ObjectOpener(f"{s3.uri}/x", 1)().read(1)


def test_no_credentials(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="no credentials to reach s3://"):
        list(list_objects(s3.uri))


def test_profile_is_honoured(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(s3.uri, {"x": b"1"})
    server = s3.server
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id={server.access_key}\naws_secret_access_key={server.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[profile lab]\nregion=us-east-1\nendpoint_url={server.endpoint}\n")
    for name in server.env:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert _paths(s3.uri) == ["x"]
    filesystem, path = storage.filesystem(f"{s3.uri}/x")
    assert filesystem.open_input_file(path).read() == b"1"


def test_unknown_profile_is_named(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(UserError, match=r"no-such-profile.*AWS_PROFILE"):
        list(list_objects(s3.uri))


def test_unreachable_store_names_the_endpoint(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"cannot reach .* at http://127.0.0.1:9: check AWS_ENDPOINT_URL"):
        list(list_objects(s3.uri))


def test_anonymous_sends_no_signature(s3: S3Bucket) -> None:
    put(s3.uri, {"x": b"1"})
    with pytest.raises(UserError, match=r"denied|refused"):  # this server has no public bucket
        list(list_objects(s3.uri, StorageOptions(anonymous=True)))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("s3://b/a%20b?#+/", "s3://b/a%20b?#+"),
        ("S3://b", "s3://b"),
        ("gs://b/x", "gs://b/x"),
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("file:///tmp/a#b?c", "/tmp/a#b?c"),
        ("/tmp/x/../a%20b/", "/tmp/a%20b"),
    ],
)
def test_uris_have_one_form(given: str, wanted: str) -> None:
    assert storage.normalise_uri(given) == wanted


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise_uri("x") == str(tmp_path / "x")
    assert storage.join("x", "y/", "/z") == str(tmp_path / "x/y/z")


@pytest.mark.parametrize("uri", ["s3://", "ftp://x/y", "file://elsewhere/x", ""])
def test_bad_uris_are_refused(uri: str) -> None:
    with pytest.raises(UserError):
        storage.normalise_uri(uri)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(str(tmp_path), {"real/a": b"1", "src/b": b"2"})
    (tmp_path / "src" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "src" / "loop").symlink_to(tmp_path / "src")
    (tmp_path / "src" / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "src" / "pipe")
    assert _paths(str(tmp_path / "src")) == ["b", "dangling", "linked/a"]


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    (tmp_path / "ok").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")).write_bytes(b"1")
    assert _paths(str(tmp_path)) == ["bad\\udcff", "ok"]


def test_download_does_not_leave_its_folder(s3: S3Bucket, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3").put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/a/..%2fx", Body=b"1")
    storage.download_dir(s3.uri, tmp_path / "in")
    assert [p.name for p in (tmp_path / "in").rglob("*") if p.is_file()] == ["..%2fx"]


def test_replacing_is_atomic(root: str) -> None:
    contents = [bytes([i]) * 200_000 for i in range(2)]
    storage.write_bytes(f"{root}/x", contents[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(storage.read_bytes(f"{root}/x"))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        storage.write_bytes(f"{root}/x", contents[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)
