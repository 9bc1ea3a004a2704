"""How the tests are collected: the longest files first, and TensorFlow untouched until the first test runs."""

import gc
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

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
