"""The hash of `data.encoding.hashing` once more, on plain Python integers, written from its statement alone."""

WORD = 2**64


def mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) % WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % WORD
    return word ^ (word >> 31)


def fnv1a(text: str) -> int:
    word = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        word = ((word ^ byte) * 0x100000001B3) % WORD
    return word


def scalar_hash(value: int | str) -> int:
    return mix(fnv1a(value)) if isinstance(value, str) else mix(value % WORD)


def scalar_row_hash(*keys: int | str) -> int:
    word = 0
    for key in keys:
        word = mix(word ^ scalar_hash(key))
    return word
