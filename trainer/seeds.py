"""Seeds of initial values."""

import hashlib


def seed_of(seed: int, path: str) -> int:
    """Return the seed of a weight's initial values, the same in every process and for any number of workers.

    Args:
        seed: seed of the run.
        path: path of the weight in the model, such as "mmoe/experts_1/layer_1/kernel".
    """
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2**31
