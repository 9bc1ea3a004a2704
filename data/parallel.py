"""Work shared by threads, for functions that release Python's lock: NumPy, hashing, files, TensorFlow."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function on every item, in a thread per available core, and return the results in order.

    Calls begin in the order of the items.

    Raises:
        Exception: that of the first item whose call fails, once no call is running. Those not begun are dropped.
    """
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)
