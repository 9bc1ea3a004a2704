"""How the tests are collected: the longest files first, and TensorFlow untouched until the first test runs."""

import gc
import os
import secrets
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from data.storage.range_cache import CACHE_LIMIT_VARIABLE
from data.storage.remote import CACHE_DIR_VARIABLE
from tests.object_store import BUCKET, s3_server, use

# A change is checked with the same examples everywhere; without this profile, every run draws new ones.
settings.register_profile("repeatable", derandomize=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects without looking for garbage: nearly all that is imported and collected stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first: with several pytest workers, a long file at the end would run alone."""
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("horovod", "long")))


def pytest_collection_finish() -> None:
    """Rejects test modules that run TensorFlow when they are imported.

    main.py sets threads and devices, which works only before the first operation of a process.
    """
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        if context.context()._initialized:
            raise pytest.UsageError("a test module runs TensorFlow when it is imported; move that into a test")


@pytest.fixture(autouse=True)
def cache_of_its_own() -> Iterator[None]:
    """Undoes what the flags --cache_dir and --cache_limit of a test have set for its process."""
    before = {name: os.environ.get(name) for name in (CACHE_DIR_VARIABLE, CACHE_LIMIT_VARIABLE)}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, str]]:
    """The environment variables of clients of an S3 server on this machine."""
    with s3_server() as variables:
        yield variables


@pytest.fixture
def store(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a new folder in an object store, which this process and its children use with a cache of their own."""
    use(monkeypatch, server, tmp_path / "cache")
    return f"s3://{BUCKET}/{secrets.token_hex(4)}"
