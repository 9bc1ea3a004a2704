"""Files in object stores and other file systems that a URL names: `s3://`, `gs://`, `hdfs://`.

Stores are opened through `pyarrow.fs`, or through fsspec where that has no file system for a scheme. Credentials come
from the environment variables and files that the store's own tools use; they stand in no URL and in no message.

Every request is repeated a few times, with growing pauses, until `DEADLINE` seconds have passed; the requests of S3 and
Google Cloud Storage have limits of their own, so that a server that stalls ends with an error. A download is compared
with the size that the store states, and gets its name on the local disk only when it is complete.

The copies of remote files lie under one folder, `cache_dir`, at SCHEME/HOST/PATH, so that a message that names a copy
says which object it is about. `mirror_of` and `url_of` map a URL to the path of its copy and back. Several processes
share that folder: files appear and disappear in it as a whole.
"""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.errors import DataError, LostInputError
from data.storage.files import create_new, open_regular, temporary_beside

if TYPE_CHECKING:  # every command imports this module, few open a store
    from pyarrow.fs import FileInfo, FileSystem

CACHE_DIR_VARIABLE = "RECIPE_CACHE_DIR"
DEADLINE_VARIABLE = "RECIPE_REMOTE_DEADLINE"
DEADLINE = 120.0
CONNECT_TIMEOUT, REQUEST_TIMEOUT = 10.0, 20.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
BLOCK_BYTES = 4 * 2**20
# Folder in `cache_dir` of what is not complete yet.
DRAFTS = ".drafts"

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)(?:/(.*))?", re.DOTALL | re.IGNORECASE)
# Names of environment variables that hold credentials, whatever the store.
_SECRET_VARIABLE = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|KEY|KEY_ID|CONNECTION_STRING)$", re.IGNORECASE)
_SHORTEST_SECRET = 6  # shorter values may be parts of other words
_SECRETS = re.compile(
    r"((?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId|Signature"
    r"|Credential|access_key|secret_key|session_token|sig|token)\s*[=:]\s*|Bearer\s+)[^\s&,;\"'<>]+",
    re.IGNORECASE,
)
# What repeating does not change: the caller lacks a right, or names something that does not exist.
_FINAL = re.compile(
    r"ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch"
    r"|NO_SUCH_BUCKET|NoSuchBucket|Bucket '[^']*' not found|HTTP status 40[134]|PERMISSION_DENIED|UNAUTHENTICATED",
)
_Result = TypeVar("_Result")


class RemoteError(DataError):
    """A store cannot be read or written; the message names the URL, the cause and what to do."""


class RemoteUnreachableError(RemoteError):
    """A store did not answer, or only with errors that may pass, until the deadline: no mistake in the input."""


class RemoteNotFoundError(RemoteError):
    """A URL names no object."""


class RemoteChangedError(LostInputError):
    """An object was replaced or removed while it was in use."""


@dataclass(frozen=True)
class RemoteFile:
    """An object as its store describes it.

    Attributes:
        url: where it is.
        size: its bytes.
        modified_ns: when it was written, in ns since 1970; 0 where the store does not say.
        tag: what the store changes whenever the object is replaced (an ETag), "" where it has none or was listed.
    """

    url: str
    size: int
    modified_ns: int
    tag: str = ""

    def is_same(self, other: "RemoteFile") -> bool:
        """Return whether the other description is of the same content, as far as the store says."""
        if self.tag and other.tag:
            return (self.size, self.tag) == (other.size, other.tag)
        return (self.size, self.modified_ns) == (other.size, other.modified_ns)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether text names a file by URL, such as s3://BUCKET/KEY, and not by a local path."""
    return _URL.fullmatch(os.fspath(path)) is not None


def checked_url(url: str) -> str:
    """Return a URL without trailing slashes.

    Raises:
        DataError: The URL has no bucket or host, contains credentials or has empty or relative parts.
    """
    scheme, host, path = _parts(url)
    path = path.rstrip("/")
    user, at, _ = host.rpartition("@")
    if at and (":" in user or scheme in ("s3", "gs", "gcs")):
        raise DataError(
            f"a {scheme}:// URL contains a user or password before '@'; remove it, and pass credentials in the store's "
            "environment variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if not host and scheme not in ("hdfs", "file"):
        raise DataError(f"{url}: names no bucket or host; expected {scheme}://BUCKET/FOLDER")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise DataError(f"{url}: has an empty or relative part; write the path of the object without '//' and '..'")
    return f"{scheme}://{host}/{path}".rstrip("/") if host else f"{scheme}:///{path}"


def named(path: str | os.PathLike[str]) -> str:
    """Return a path as messages name it: by its URL, without a user and password, if it is one or its local copy."""
    return re.sub(r"(?<=://)[^/]*@", "***@", url_of(path) or os.fspath(path))


def join(url: str, name: str) -> str:
    """Return the URL of a relative name in a folder."""
    return f"{url.rstrip('/')}/{name}"


def cache_dir() -> Path:
    """Return the folder of the local copies: $RECIPE_CACHE_DIR, else recommender in the user's cache folder."""
    if stated := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(os.path.abspath(stated))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.path.abspath(home)) / "recommender"


def mirror_of(url: str) -> Path:
    """Return the path of the local copy of a URL, whether or not there is one."""
    scheme, host, path = _parts(checked_url(url))
    return cache_dir() / scheme / (host or "_") / path


def draft_of(url: str) -> Path:
    """Return the path of a local folder in which what a URL will hold can be made. It is no copy: `url_of` is None."""
    return cache_dir() / DRAFTS / mirror_of(url).relative_to(cache_dir())


def url_of(path: str | os.PathLike[str]) -> str | None:
    """Return the URL whose local copy a path is; None for a path outside of `cache_dir`, or of a draft in it."""
    root, text = f"{cache_dir()}/", os.path.abspath(path)
    if not text.startswith(root):
        return None
    scheme, _, rest = text[len(root) :].partition("/")
    host, _, name = rest.partition("/")
    if scheme == DRAFTS:
        return None
    return f"{scheme}://{'' if host == '_' else host}/{name}" if host else None


def list_files(url: str) -> list[RemoteFile]:
    """Return the files below a folder, sorted by URL; none if there is no such folder.

    Raises:
        RemoteError: The store cannot be read.
    """
    from pyarrow.fs import FileSelector

    url = checked_url(url)
    store, path = _open(url)
    found = _repeated(
        url,
        "list",
        lambda: store.get_file_info(FileSelector(path, allow_not_found=True, recursive=True)),
    )
    names = ((str(info.path)[len(path) :].lstrip("/"), info) for info in found if info.is_file)
    return sorted((_described(join(url, name), info) for name, info in names), key=lambda file: file.url)


def stat(url: str) -> RemoteFile:
    """Return the description of an object, with its tag.

    Raises:
        RemoteNotFoundError: There is no such object.
        RemoteError: The store cannot be read.
    """
    url = checked_url(url)
    store, path = _open(url)

    def describe() -> RemoteFile:
        info = store.get_file_info(path)
        if not info.is_file:
            raise RemoteNotFoundError(f"{url}: no such object; check the URL")
        with store.open_input_file(path) as file:
            size, tag = file.size(), _tag(file)
        # A cut-off answer may lack the size, which then reads as 0, or the tag, which S3 always states.
        if size != info.size or (url.startswith("s3://") and not tag):
            raise _TransientError("the answers of the store differ, or one was cut off")
        return _described(url, info, tag)

    return _repeated(url, "read", describe)


def exists(url: str) -> bool:
    """Return whether there is an object of this URL."""
    url = checked_url(url)
    store, path = _open(url)
    return bool(_repeated(url, "read", lambda: store.get_file_info(path).is_file))


def read_range(file: RemoteFile, offset: int, length: int) -> bytes:
    """Return `length` bytes of an object.

    Raises:
        RemoteChangedError: The object is no longer the one that `file` describes.
        RemoteError: The store cannot be read.
    """
    store, path = _open(file.url)

    def read() -> bytes:
        with store.open_input_file(path) as opened:
            _check_same(file, opened.size(), _tag(opened))
            content = bytes(opened.read_at(length, offset))
        if len(content) != length:
            raise OSError(f"got {len(content):,} of {length:,} bytes at {offset:,}")
        return content

    try:
        return _repeated(file.url, "read", read)
    except RemoteNotFoundError as error:
        raise RemoteChangedError(f"{file.url}: was removed while it was in use; start again") from error


def fetch(url: str, path: Path) -> RemoteFile:
    """Download an object to `path`, which appears only when it is complete and as long as the store says.

    Raises:
        RemoteNotFoundError: There is no such object.
        RemoteError: The store cannot be read.
        OSError: `path` cannot be written.
    """
    file = stat(url)
    store, remote_path = _open(file.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)

    def download() -> None:
        temporary.unlink(missing_ok=True)
        with store.open_input_file(remote_path) as source, _local(path), create_new(temporary) as target:
            _check_same(file, source.size(), _tag(source))
            done = 0
            while block := _remote_read(source):
                done += len(block)
                target.write(block)
            if done != file.size:
                raise _TransientError(f"got {done:,} of {file.size:,} bytes")

    try:
        _repeated(file.url, "read", download)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return file


def put(path: Path, url: str) -> None:
    """Upload a file, and check that the store states its size.

    Raises:
        RemoteError: The store cannot be written.
        OSError: `path` cannot be read.
    """
    url = checked_url(url)
    store, remote_path = _open(url)
    make_folder = not url.startswith(("s3://", "gs://", "gcs://"))

    def upload() -> None:
        if make_folder:
            store.create_dir(os.path.dirname(remote_path), recursive=True)
        with open_regular(path) as source:
            size = os.fstat(source.fileno()).st_size
            with store.open_output_stream(remote_path) as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
        stored = store.get_file_info(remote_path)
        if not stored.is_file or stored.size != size:
            raise _TransientError(f"the store holds {stored.size} of {size:,} bytes")

    _repeated(url, "write", upload)


def delete(url: str) -> None:
    """Remove an object, if there is one.

    Raises:
        RemoteError: The store cannot be written.
    """
    url = checked_url(url)
    store, path = _open(url)

    def remove() -> None:
        if store.get_file_info(path).is_file:
            store.delete_file(path)

    _repeated(url, "remove", remove)


def pull_folder(url: str, last: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """Download files of a folder to its local mirror, and remove what the mirror has too much.

    A copy of the same size and time of modification is kept.

    Args:
        url: the folder.
        last: name of the file that was written last, without which the folder does not exist.
        wanted: takes the name of a file relative to the folder and returns whether to download it; other files of the
            mirror are left alone.

    Returns:
        The mirror.

    Raises:
        RemoteNotFoundError: The folder has no file `last`.
        RemoteError: The store cannot be read.
    """
    url = checked_url(url)
    mirror = mirror_of(url)
    marker = stat(join(url, last))
    listed = {file.url[len(url) + 1 :]: file for file in list_files(url)}
    for name, file in listed.items():
        if wanted(name) and name != last and not _is_copy(file, mirror / name):
            _fetch_copy(file, mirror / name)
    for path in list(mirror.rglob("*")):
        name = path.relative_to(mirror).as_posix()
        if path.is_file() and wanted(name) and name not in listed and not name.endswith(".unfinished"):
            path.unlink(missing_ok=True)
    # Always fresh: it is small, and the mirror is valid only with it.
    _fetch_copy(marker, mirror / last)
    if not marker.is_same(stat(join(url, last))):
        raise RemoteChangedError(f"{url}: was replaced while it was read; start again")
    return mirror


def push_folder(folder: Path, url: str, last: str) -> None:
    """Upload all files of a folder, and `last`, which makes them valid, in the end.

    A store has no atomic rename: the old `last` is removed first, so that readers find the old folder, none or the new
    one, and files that the new folder lacks are removed before it becomes valid.

    Args:
        folder: local folder.
        url: folder in the store; its former files are replaced.
        last: name of a file in `folder`.

    Raises:
        RemoteError: The store cannot be written; the folder in the store may not exist any more, and pushing again
            completes it.
        OSError: The local folder cannot be read.
    """
    url = checked_url(url)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    if last not in names:
        raise ValueError(f"{folder} has no {last}")
    delete(join(url, last))
    for old in list_files(url):
        if old.url[len(url) + 1 :] not in names:
            delete(old.url)
    for name, path in zip(names, paths, strict=True):
        if name != last:
            put(path, join(url, name))
    put(folder / last, join(url, last))


def delete_folder(url: str, last: str) -> None:
    """Remove all files of a folder, first the one without which it does not exist."""
    delete(join(checked_url(url), last))
    for file in list_files(url):
        delete(file.url)


def scrubbed(text: str) -> str:
    """Return text without credentials and signatures."""
    secrets = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return _SECRETS.sub(r"\1***", text)


class _TransientError(OSError):
    """A transfer that ended early."""


class _LocalError(Exception):
    """Carries an OSError of the local disk past the repeated requests."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """Tell errors of the local disk, which have a number, from those of the store."""
    try:
        yield
    except OSError as error:
        if error.errno and not isinstance(error, FileNotFoundError | _RemoteReadError):
            raise _LocalError(error) from error
        raise


class _RemoteReadError(OSError):
    """An error of the store."""


def _remote_read(source: Any) -> bytes:
    try:
        return bytes(source.read(BLOCK_BYTES))
    except OSError as error:
        raise _RemoteReadError(str(error)) from error


def _fetch_copy(file: RemoteFile, path: Path) -> None:
    fetched = fetch(file.url, path)
    if fetched.modified_ns:
        os.utime(path, ns=(time.time_ns(), fetched.modified_ns))


def _is_copy(file: RemoteFile, path: Path) -> bool:
    with suppress(OSError):
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (file.size, file.modified_ns)
    return False


def _described(url: str, info: "FileInfo", tag: str = "") -> RemoteFile:
    return RemoteFile(url, int(info.size), int(info.mtime_ns or 0), tag)


def _tag(file: Any) -> str:
    """Return the ETag of an open file, "" where the store has none."""
    try:
        found = file.metadata() or {}
    except NotImplementedError:
        return ""
    tags = [value for name, value in found.items() if os.fsdecode(name).lower() == "etag"]  # in any case
    return tags[0].decode() if tags and isinstance(tags[0], bytes) else "".join(map(str, tags))


def _check_same(file: RemoteFile, size: int, tag: str) -> None:
    """Check that an opened object is the one described.

    Raises:
        RemoteChangedError: It was replaced.
        _TransientError: The answer was cut off: it lacks the tag, or states another size under the same tag.
    """
    if file.tag and (not tag or (tag == file.tag and size != file.size)):
        raise _TransientError(f"the answer states {size:,} of {file.size:,} bytes: it was cut off")
    if size != file.size or (file.tag and tag != file.tag):
        raise RemoteChangedError(
            f"{file.url}: was replaced while it was in use ({file.size:,} bytes before, {size:,} now); start again, "
            "and write changed data under a new name"
        )


def _repeated(url: str, what: str, request: Callable[[], _Result]) -> _Result:
    """Return the result of a request, repeated on errors that may pass until the deadline.

    Raises:
        RemoteNotFoundError: There is no such object.
        RemoteError: The request fails for good, or still at the deadline.
    """
    limit = float(os.environ.get(DEADLINE_VARIABLE) or DEADLINE)
    end, pause, attempts = time.monotonic() + limit, FIRST_PAUSE, 0
    while True:
        attempts += 1
        try:
            return request()
        except _LocalError as error:
            raise error.error from error
        except FileNotFoundError as error:
            raise RemoteNotFoundError(f"{url}: no such object; check the URL") from error
        except (LostInputError, DataError):
            raise
        except OSError as error:
            cause = scrubbed(_first_line(error))
            if _FINAL.search(str(error)):
                raise RemoteError(
                    f"{url}: cannot {what}: {cause}; check the URL, and that the credentials in the environment may "
                    f"{what} it"
                ) from None
            if time.monotonic() + pause >= end:
                raise RemoteUnreachableError(
                    f"{url}: cannot {what} after {attempts} attempts in {limit:g} s: {cause}; check that the store can "
                    f"be reached, or wait longer with {DEADLINE_VARIABLE}=SECONDS"
                ) from None
        # Jitter: workers that failed together do not come back together.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


_opening = threading.Lock()


def _parts(url: str) -> tuple[str, str, str]:
    """Return scheme, bucket or host, and path of a URL."""
    found = _URL.fullmatch(url)
    if found is None:
        raise DataError(f"{url}: is no URL; expected one such as s3://BUCKET/FOLDER")
    return found[1].lower(), found[2], found[3] or ""


def _open(url: str) -> "tuple[FileSystem, str]":
    """Return the file system of a URL and the URL's path in it."""
    scheme, host, path = _parts(url)
    with _opening:
        store, root = _store(scheme, host, os.environ.get("AWS_ENDPOINT_URL", ""))
    return store, f"{root}/{path}".rstrip("/") if root else f"/{path}"


@lru_cache(maxsize=32)
def _store(scheme: str, host: str, endpoint: str) -> "tuple[FileSystem, str]":
    """Return a file system and the path of the URL's bucket or host in it."""
    from pyarrow import fs

    url = f"{scheme}://{host}"
    try:
        if scheme == "s3":
            return _repeated(url, "open", lambda: _s3(host, endpoint)), host
        if scheme in ("gs", "gcs"):
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_TIMEOUT)), host
        try:
            return fs.FileSystem.from_uri(f"{url}/")[0], ""
        except ValueError as error:  # ArrowInvalid: no file system for this scheme
            return _fsspec(scheme, url, error)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, DataError):
            raise
        needs = "; install Hadoop's client, and set JAVA_HOME, HADOOP_HOME and CLASSPATH for it"
        hint = needs if scheme in ("hdfs", "viewfs") else ""
        raise RemoteError(f"{url}: cannot be opened: {scrubbed(_first_line(error))}{hint}") from None


def _s3(bucket: str, endpoint: str) -> "FileSystem":
    from pyarrow import fs

    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    region = named or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket))
    return fs.S3FileSystem(
        region=region,
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        # An upload is several requests, each of which may fail: repeating only the whole might never succeed.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        **({"endpoint_override": endpoint} if endpoint else {}),
    )


def _fsspec(scheme: str, url: str, cause: ValueError) -> "tuple[FileSystem, str]":
    from pyarrow import fs

    try:
        from fsspec.core import url_to_fs

        opened, root = url_to_fs(f"{url}/")
    except (ImportError, ValueError):
        raise RemoteError(
            f"{url}: there is no file system for {scheme}://; expected s3://, gs:// or hdfs://, or a scheme for which "
            f"an fsspec package is installed ({scrubbed(_first_line(cause))})"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(opened)), str(root).rstrip("/")
