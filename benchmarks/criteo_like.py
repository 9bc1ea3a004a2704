"""A generated file in the form of Criteo's: a label, 13 integers and 26 texts per row, with a header.

The texts of a column are drawn as floor(cardinality * u^3) with u uniform, so that the first ones are frequent, and
written as 8 hexadecimal digits. 15 % of the integers and 3 % of the texts are empty cells.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

NUMBERS = [f"I{number}" for number in range(1, 14)]
TEXTS = [f"C{number}" for number in range(1, 27)]
LABEL = "label"
CARDINALITIES = (
    *(1460, 583, 1_000_000, 1_000_000, 305, 24, 12_517, 633, 3, 93_145, 5683, 1_000_000, 3194),
    *(27, 14_992, 1_000_000, 10, 5652, 2173, 4, 1_000_000, 18, 15, 286_181, 105, 142_572),
)
MISSING_NUMBERS, MISSING_TEXTS = 0.15, 0.03
POSITIVES = 0.25
ROWS_PER_BLOCK = 250_000


def raw_specification() -> str:
    """Return the raw specification of the files train.csv and test.csv: texts that occur twice or more have ids."""
    numbers = "".join(f"  {name}: {{encode: [{{fill: 0}}, standardize]}}\n" for name in NUMBERS)
    texts = "".join(f"  {name}: {{encode: {{vocabulary: {{min_count: 2}}}}}}\n" for name in TEXTS)
    sources = "".join(
        f"  {mapping}: [{{type: csv, header: true, files: [{mapping}.csv]}}]\n" for mapping in ("train", "test")
    )
    channels = {"onehot_categorical": TEXTS, "numerical": NUMBERS, "label": [LABEL]}
    lists = "".join(f"  {channel}: [{', '.join(names)}]\n" for channel, names in channels.items())
    return f"feature_spec:\n  {LABEL}: {{}}\n{numbers}{texts}source_spec:\n{sources}channel_spec:\n{lists}"


def write_criteo_like(path: Path, rows: int, *, seed: int = 0) -> None:
    """Write a CSV file in blocks; a larger file begins with the rows of a smaller one if both have whole blocks."""
    texts = [_texts(column, size) for column, size in enumerate(CARDINALITIES)]
    with path.open("wb") as file:
        file.write(",".join([LABEL, *NUMBERS, *TEXTS]).encode() + b"\n")
        for start in range(0, rows, ROWS_PER_BLOCK):
            generator = np.random.default_rng([seed, start])
            table = _block(generator, texts, min(ROWS_PER_BLOCK, rows - start))
            pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=False, quoting_style="none"))


def _block(generator: np.random.Generator, texts: list[pa.Array], rows: int) -> pa.Table:
    columns: dict[str, pa.Array] = {LABEL: pa.array((generator.random(rows) < POSITIVES).astype(np.int64))}
    for name in NUMBERS:
        numbers = np.exp(1.5 * generator.standard_normal(rows)).astype(np.int64)
        columns[name] = pa.array(numbers, mask=generator.random(rows) < MISSING_NUMBERS)
    for name, values in zip(TEXTS, texts, strict=True):
        ids = (len(values) * generator.random(rows) ** 3).astype(np.int64)
        columns[name] = values.take(pa.array(ids, mask=generator.random(rows) < MISSING_TEXTS))
    return pa.table(columns)


def _texts(column: int, size: int) -> pa.Array:
    """Return the distinct texts of a column: 8 hexadecimal digits each."""
    # A product with an odd number is a permutation of the 32-bit words, so that texts are distinct.
    words = (np.arange(size, dtype=np.uint32) + np.uint32(column * 7919)) * np.uint32(2_654_435_761)
    digits = words.astype(">u4").tobytes().hex().encode()
    offsets = np.arange(size + 1, dtype=np.int32) * 8
    return pa.StringArray.from_buffers(size, pa.py_buffer(offsets), pa.py_buffer(digits))
