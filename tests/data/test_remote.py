"""Files in an object store: a real S3 protocol, and one that fails, cuts and stalls."""

import secrets
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from data.errors import DataError
from data.storage import remote
from tests.object_store import BUCKET, SECRET, Faults, proxy, use


def file_of(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(secrets.token_bytes(size))
    return path


def test_an_object_returns_as_it_was_written(store, tmp_path):
    path = file_of(tmp_path / "a", 11 * 2**20 + 7)
    remote.put(path, f"{store}/deep/a")
    assert [(file.url, file.size) for file in remote.list_files(store)] == [(f"{store}/deep/a", path.stat().st_size)]
    fetched = remote.fetch(f"{store}/deep/a", tmp_path / "copies" / "a")
    assert (tmp_path / "copies" / "a").read_bytes() == path.read_bytes()
    assert fetched.tag
    assert remote.read_range(fetched, 1000, 77) == path.read_bytes()[1000:1077]
    remote.delete(f"{store}/deep/a")
    assert not remote.exists(f"{store}/deep/a")
    assert remote.list_files(store) == []


def test_a_missing_object_is_named_by_its_url(store, tmp_path):
    with pytest.raises(remote.RemoteNotFoundError, match=f"{store}/none: no such object"):
        remote.fetch(f"{store}/none", tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


def test_a_replaced_object_is_not_read(store, tmp_path):
    remote.put(file_of(tmp_path / "a", 100), f"{store}/a")
    before = remote.stat(f"{store}/a")
    remote.put(file_of(tmp_path / "a", 100), f"{store}/a")  # the same size, within the same second
    with pytest.raises(remote.RemoteChangedError, match=f"{store}/a: was replaced"):
        remote.read_range(before, 0, 10)


@pytest.mark.parametrize("kind", ["error", "cut"])
def test_passing_faults_lose_nothing(server, monkeypatch, tmp_path, kind):
    faults = Faults(kind, every=3)
    store, path = f"s3://{BUCKET}/{secrets.token_hex(4)}", file_of(tmp_path / "a", 3 * 2**20)
    with proxy(server, faults) as environment:
        use(monkeypatch, environment, tmp_path / "cache")
        for number in range(4):
            remote.put(path, f"{store}/{number}")
            remote.fetch(f"{store}/{number}", tmp_path / f"copy{number}")
            assert (tmp_path / f"copy{number}").read_bytes() == path.read_bytes()
        assert len(remote.list_files(store)) == 4
    assert faults.hit > 5


@pytest.mark.parametrize("kind", ["error", "cut", "stall"])
def test_a_store_that_never_answers_ends_with_its_url(server, monkeypatch, tmp_path, kind):
    with proxy(server, Faults(kind, every=1)) as environment:
        use(monkeypatch, environment, tmp_path / "cache")
        monkeypatch.setenv("RECIPE_REMOTE_DEADLINE", "2")
        monkeypatch.setattr(remote, "REQUEST_TIMEOUT", 1.0)
        remote._store.cache_clear()
        start = time.monotonic()
        with pytest.raises(
            remote.RemoteError, match=rf"s3://{BUCKET}/a: cannot read after \d+ attempts.*DEADLINE"
        ) as e:
            remote.fetch(f"s3://{BUCKET}/a", tmp_path / "copy")
        assert time.monotonic() - start < 30
    assert SECRET not in str(e.value)
    assert not (tmp_path / "copy").exists()


def test_a_folder_exists_with_its_last_file(store, tmp_path):
    folder = tmp_path / "folder"
    for name in ("last.json", "b", "sub/c"):
        file_of(folder / name, 50)
    remote.push_folder(folder, store, "last.json")
    mirror = remote.pull_folder(store, "last.json")
    assert mirror == tmp_path / "cache" / store.replace("://", "/")
    assert remote.url_of(mirror / "sub/c") == f"{store}/sub/c"
    assert {path.relative_to(mirror): path.read_bytes() for path in mirror.rglob("*") if path.is_file()} == {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    (folder / "b").unlink()
    file_of(folder / "sub/c", 51)
    remote.push_folder(folder, store, "last.json")
    remote.pull_folder(store, "last.json")
    assert (mirror / "sub/c").read_bytes() == (folder / "sub/c").read_bytes()
    assert not (mirror / "b").exists()
    remote.delete(f"{store}/last.json")
    with pytest.raises(remote.RemoteNotFoundError, match="last.json"):
        remote.pull_folder(store, "last.json")


def test_a_push_that_fails_leaves_no_valid_folder(store, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    for name in ("last.json", "b", "c"):
        file_of(folder / name, 50)
    remote.push_folder(folder, store, "last.json")
    put = remote.put

    def fails(path, url):
        if path.name == "c":
            raise remote.RemoteError("the store is gone")
        put(path, url)

    monkeypatch.setattr(remote, "put", fails)
    with pytest.raises(remote.RemoteError, match="gone"):
        remote.push_folder(folder, store, "last.json")
    assert not remote.exists(f"{store}/last.json")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://user:hidden@bucket/a", "contains a user or password"),
        ("hdfs://user:hidden@host/a", "contains a user or password"),
        ("s3:///a", "names no bucket"),
        ("s3://bucket/../a", "empty or relative part"),
        ("s3://bucket//a", "empty or relative part"),
    ],
)
def test_urls_that_are_rejected(url, message):
    with pytest.raises(DataError, match=message) as error:
        remote.checked_url(url)
    assert "hidden" not in str(error.value)


def test_messages_hold_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = f"GET /a?X-Amz-Credential=AKIA&X-Amz-Signature=abc&size=3 with {SECRET}, Authorization: Bearer ya29.x"
    assert remote.scrubbed(text) == (
        "GET /a?X-Amz-Credential=***&X-Amz-Signature=***&size=3 with ***, Authorization: Bearer ***"
    )


@pytest.mark.parametrize(
    "name", ["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING"]
)
def test_credentials_of_every_store_are_replaced(monkeypatch, name):
    monkeypatch.setenv(name, "abc/def+123")
    monkeypatch.setenv("SOME_KEY", "x")  # too short to be one
    assert remote.scrubbed("denied: abc/def+123 in box") == "denied: *** in box"


def test_the_region_of_a_bucket_is_asked_for_again(monkeypatch):
    answers = [OSError("When resolving region: timed out"), OSError("HTTP status 503"), "eu-west-1"]

    def region(bucket):
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    for variable in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pyarrow.fs, "resolve_s3_region", region)
    remote._store.cache_clear()
    assert remote._open("s3://box/a")[0].region == "eu-west-1"
    remote._store.cache_clear()
    answers.append(OSError("Bucket 'box' not found"))
    with pytest.raises(remote.RemoteError, match="s3://box: cannot open: Bucket 'box' not found; check the URL"):
        remote._open("s3://box/a")
    assert not answers


def test_a_local_file_system_behind_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_CACHE_DIR", str(tmp_path / "cache"))
    path, url = file_of(tmp_path / "a", 100), f"file://{tmp_path}/store/a"
    remote.put(path, url)
    assert [file.url for file in remote.list_files(f"file://{tmp_path}/store")] == [url]
    remote.fetch(url, remote.mirror_of(url))
    assert remote.mirror_of(url).read_bytes() == path.read_bytes()
    assert remote.url_of(remote.mirror_of(url)) == url


@pytest.mark.parametrize(
    ("url", "place"),
    [("gs://box/deep", "box/deep"), ("gcs://box", "box"), ("hdfs://host:8020/deep", "deep"), ("hdfs:///d", "d")],
)
def test_schemes_without_a_server(tmp_path, monkeypatch, url, place):
    """Stand-ins for the file systems of pyarrow: which one is chosen, for what, and which paths it gets."""
    chosen = []
    disk = DirFileSystem(str(tmp_path / "disk"), LocalFileSystem(auto_mkdir=True))

    def opened(*arguments, **options):
        chosen.append((arguments, sorted(options)))
        return PyFileSystem(FSSpecHandler(disk))

    class FileSystem:
        @staticmethod
        def from_uri(uri):
            return opened(uri), "/"

    monkeypatch.setattr(pyarrow.fs, "GcsFileSystem", opened)
    monkeypatch.setattr(pyarrow.fs, "FileSystem", FileSystem)
    monkeypatch.setenv("RECIPE_CACHE_DIR", str(tmp_path / "cache"))
    remote._store.cache_clear()
    try:
        folder = tmp_path / "folder"
        for name in ("last.json", "sub/b"):
            file_of(folder / name, 500)
        remote.push_folder(folder, url, "last.json")
        assert (tmp_path / "disk" / place / "sub/b").read_bytes() == (folder / "sub/b").read_bytes()
        mirror = remote.pull_folder(url, "last.json")
        assert (mirror / "sub/b").read_bytes() == (folder / "sub/b").read_bytes()
        assert remote.url_of(mirror / "sub/b") == f"{url}/sub/b"
        assert [file.url for file in remote.list_files(url)] == [f"{url}/last.json", f"{url}/sub/b"]
        stat = remote.stat(f"{url}/sub/b")
        assert remote.read_range(stat, 7, 9) == (folder / "sub/b").read_bytes()[7:16]
        remote.delete_folder(url, "last.json")
        assert remote.list_files(url) == [] and not remote.exists(f"{url}/last.json")
    finally:
        remote._store.cache_clear()
    host = url.split("/")[2]
    assert chosen == [((), ["retry_time_limit"]) if url.startswith("g") else ((f"hdfs://{host}/",), [])]


def test_any_file_system_of_fsspec(tmp_path):
    path, url = file_of(tmp_path / "a", 100), "memory://host/deep/a"
    remote.put(path, url)
    assert [file.url for file in remote.list_files("memory://host")] == [url]
    remote.fetch(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    remote.delete(url)
    assert not remote.exists(url)


@pytest.mark.parametrize("name", ["ETag", b"ETag", "etag", b"etag"])
def test_tags_are_found_as_each_store_writes_them(name):
    """S3 and Google Cloud Storage write the name differently."""
    assert remote._tag(SimpleNamespace(metadata=lambda: {name: b"5d41", b"size": b"3"})) == "5d41"


def test_hadoop_that_is_not_installed_is_reported_with_the_fix():
    remote._store.cache_clear()
    with pytest.raises(remote.RemoteError, match=r"hdfs://host:8020: cannot be opened: .*; install Hadoop's client"):
        remote.stat("hdfs://host:8020/a")


def test_an_unknown_scheme_is_rejected():
    with pytest.raises(remote.RemoteError, match="no file system for nosuch://"):
        remote.list_files("nosuch://host/a")
