"""What preprocess.py says about input that a newcomer might give it: each message names the mistake and its fix."""

import bz2
import gzip
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import main
import preprocess
import transcode

HEADER = "user,item,price,day,liked\n"
ROWS = "".join(f"u{i % 7},i{i % 5},{i}.5,2024-01-{1 + i % 28:02},{i % 2}\n" for i in range(56))
LOG = HEADER + ROWS
SPEC = """feature_spec:
  user: {}
  item: {}
  price: {encode: [{fill: median}, standardize]}
  liked: {}
source_spec:
  logs:
    - {type: csv, header: true, files: [logs.csv]}
split: {from: logs, random: {test: 0.3}}
channel_spec:
  onehot_categorical: [user, item]
  numerical: [price]
  label: [liked]
"""
ENCODED_SPEC = """feature_spec:
  user: {cardinality: 10, dtype: int32}
  liked: {dtype: float32}
source_spec:
  train: [{type: csv, files: [logs.csv], features: [user, liked]}]
  test: [{type: csv, files: [logs.csv], features: [user, liked]}]
channel_spec:
  onehot_categorical: [user]
  label: [liked]
"""
LIST = '{separator: "|", encode: {hash: 9}}'
HEADED, PLAIN = "header: true", "features: [user, item, price, day, liked]"
BY_DAY = ("random: {test: 0.3}", "time: day, test_from: 2024-01-20")
TO_DATA = ("--input", "{raw}", "--output", "{data}")
TEXT_LABEL = ("liked: {}", 'liked: {encode: {map: {"yes": 1, "no": 0}}}')
FIRST_SPEC = ("--write_spec", "{raw}/new/feature_spec.yaml")

Changes = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """A mistake and its message.

    Attributes:
        message: part of the message.
        log: content of logs.csv.
        spec: texts of the specification to replace, or the whole specification; None for no specification.
        arguments: arguments, in which {raw} and {data} are the folders of the input and the output.
        files: other files by path, relative to the folder of both.
        name: name of the log.
    """

    message: str
    log: str | bytes = LOG
    spec: tuple[tuple[str, str], ...] | str | None = ()
    arguments: tuple[str, ...] = TO_DATA
    files: tuple[tuple[str, str], ...] = ()
    name: str = "logs.csv"


def with_cell(cell: str, column: int) -> str:
    """The log with another cell in its third row of data."""
    lines = LOG.split("\n")
    cells = lines[3].split(",")
    cells[column] = cell
    lines[3] = ",".join(cells)
    return "\n".join(lines)


def zipped(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("logs.csv", text)
    return file.getvalue()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"user": ["a"], "item": ["b"], "price": [1.0], "liked": [1]}), file)
    return file.getvalue()


def user(keys: str) -> tuple[tuple[str, str], ...]:
    """The change that gives the feature `user` some keys."""
    return (("user: {}", f"user: {{{keys}}}"),)


def lists(cell: str) -> str:
    """The log with the same cell in every row of `item`."""
    return HEADER + re.sub(r",i\d", lambda _: f",{cell}", ROWS)


def listed(keys: str) -> tuple[tuple[str, str], ...]:
    """The change that makes `item` a feature of lists with some keys."""
    lists = "onehot_categorical: [user]\n  multihot_categorical: [item]"
    return ("item: {}", f"item: {{{keys}}}"), ("onehot_categorical: [user, item]", lists)


IDS_WITH_DECIMALS = LOG.replace("\nu", "\n").replace(",i", ".0,i", 57).replace("user.0,item", "user,item")
IS_DECIMAL = "line 2: column 'user' is '0.0'; expected a whole number (int64); this one is written with decimals"
AS_VOCABULARY = "for an id, drop `dtype` and write `encode: vocabulary`"

HEADERS_AND_SEPARATORS = {
    "header read as data": Case(
        "logs.csv, line 1: names the columns (user, item, price, day, liked); write `header: true`, and drop "
        "`features`",
        spec=((HEADED, PLAIN),),
    ),
    "header read as a label": Case(
        "line 1: the label liked is 'liked'; expected one of 'yes', 'no'. Otherwise, if the row is the header of a CSV "
        "file, write `header: true` and drop `features`",
        spec=(
            (HEADED, "features: [a, b, c, d, liked]"),
            ("  user: {}\n", "  user: {column: a}\n"),
            ("  item: {}\n  price: {encode: [{fill: median}, standardize]}\n", "  item: {column: b}\n"),
            ("  numerical: [price]\n", ""),
            TEXT_LABEL,
        ),
    ),
    "header read as a number": Case(
        "line 1: column 'liked' is 'label'; expected a number (float64); if line 1 names the columns, write "
        "`header: true` and drop `features`",
        log="a,b,label\nx,y,1\n",
        spec=(
            (HEADED, "features: [user, item, liked]"),
            ("  price: {encode: [{fill: median}, standardize]}\n", ""),
            ("  numerical: [price]\n", ""),
        ),
    ),
    "data read as header": Case(
        "line 1: has no column 'user'; its columns are u0, i0, 0.5, 2024-01-01, 0; if line 1 is a row of data, drop "
        "`header: true` and list `features`",
        log=ROWS,
    ),
    "neither header nor features": Case(
        "source_spec.logs[0].header: is missing; write header: true if the first line names the columns, or list them",
        spec=((HEADED + ", ", ""),),
    ),
    "semicolons": Case(
        'line 1: has no column \'user\'; cells seem to be separated by ";"; write `separator: ";"`',
        log=LOG.replace(",", ";"),
    ),
    "tabs": Case('cells seem to be separated by "\\t"; write `separator: "\\t"`', log=LOG.replace(",", "\t")),
    "semicolons without header": Case(
        "line 1: 1 cell, expected 5, in 'u0;i0;0.5;2024-01-01;0'; cells seem to be separated by \";\"",
        log=ROWS.replace(",", ";"),
        spec=((HEADED, PLAIN),),
    ),
    "stated separator": Case(
        'cells seem to be separated by ","; write `separator: ","`', spec=((HEADED, HEADED + ', separator: ";"'),)
    ),
    "similar column": Case("line 1: has no column 'user'; did you mean 'user_id'?", log=LOG.replace("user", "user_id")),
    "no such column": Case(
        "line 1: has no column 'user'; its columns are who, item, price, day, liked", log=LOG.replace("user", "who")
    ),
    "column twice": Case(
        "line 1: 2 columns are named 'user'; rename one", log=LOG.replace("user,item", "user,user", 1)
    ),
    "short row": Case(
        "line 4: 4 cells, expected 5, in 'u2,i2,2024-01-03,0'; the header has user, item, price, day, liked",
        log=LOG.replace("i2,2.5", "i2", 1),
    ),
    "open quote": Case(
        "line 4: begins a row with a quote that is not closed; close the quote, or write `quote: null`",
        log=with_cell('"u2', 0),
    ),
}
FILES = {
    "gzip under a plain name": Case(
        "logs.csv: is gzip-compressed, expected plain text; rename it to logs.csv.gz", log=gzip.compress(LOG.encode())
    ),
    "bzip2 under a plain name": Case("compressed with bzip2", log=bz2.compress(LOG.encode())),
    "zip under a plain name": Case("is a zip archive, expected plain text; rename it to logs.csv.zip", zipped(LOG)),
    "Zstandard under a plain name": Case("rename it to logs.csv.zst", pa.compress(LOG.encode(), "zstd", asbytes=True)),
    "workbook": Case(
        "logs.xlsx: is an Excel workbook; save it as CSV", zipped(LOG), (("logs.csv", "logs.xlsx"),), name="logs.xlsx"
    ),
    "parquet as csv": Case("logs.csv: is a parquet file, expected plain text; write `type: parquet`", as_parquet()),
    "csv as parquet": Case("logs.csv: is not a parquet file; write `type: csv`", spec=((f"csv, {HEADED}", "parquet"),)),
    "text named gz": Case(
        "logs.csv.gz: is not a .gz file; if it is plain text, rename it to logs.csv",
        spec=(("logs.csv", "logs.csv.gz"),),
        name="logs.csv.gz",
    ),
    "damaged gz": Case(
        "logs.csv.gz: is not a complete .gz file",
        log=gzip.compress(LOG.encode())[:-20],
        spec=(("logs.csv", "logs.csv.gz"),),
        name="logs.csv.gz",
    ),
    "UTF-16": Case("logs.csv: is UTF-16 text", log=LOG.encode("utf-16")),
    "latin1": Case(
        "line 4: column 'item' is not UTF-8: b'\\xe9'; save the file as UTF-8, as with: iconv -f latin1 -t utf-8",
        log=with_cell("é", 1).encode("latin1"),
    ),
    "no file": Case("no file matches 'logs.csv'; the folder holds feature_spec.yaml, other.csv", name="other.csv"),
    "no rows": Case("source_spec.logs: its files hold no rows", log=HEADER),
    "outside path": Case("'../logs.csv' leads out of the folder", spec=(("[logs.csv]", "[../logs.csv]"),)),
}
CELLS = {
    "decimal id": Case(f"{IS_DECIMAL}", IDS_WITH_DECIMALS, user("dtype: int64")),
    "decimal id, what to type": Case(AS_VOCABULARY, IDS_WITH_DECIMALS, user("dtype: int64")),
    "decimal identity": Case(IS_DECIMAL, IDS_WITH_DECIMALS, user("encode: identity, cardinality: 7")),
    "text identity": Case(
        "line 2: column 'user' is 'u0'; expected a whole number (int64); for ids that are text, write `encode: "
        "vocabulary` and no `dtype`",
        spec=user("encode: identity, cardinality: 7"),
    ),
    "long id": Case(
        "line 4: column 'user' is '18446744073709551615'; expected a number that fits int64; write `dtype: string` for "
        "longer ids",
        log=with_cell("18446744073709551615", 0).replace("\nu", "\n"),
        spec=user("dtype: int64"),
    ),
    "id beyond the cardinality": Case(
        "logs.csv, line 7: column 'user' has the id 5; expected ids in [0, 5), as the `cardinality` of user says; "
        "raise it, or write `encode: vocabulary`",
        log=LOG.replace("\nu", "\n"),
        spec=user("encode: identity, cardinality: 5"),
    ),
    "id of a list beyond the cardinality": Case(
        "logs.csv, line 4: column 'item' has the id 9; expected ids in [0, 9), as the `cardinality` of user says; "
        "raise it",
        log=re.sub(r",i(?=\d)", ",", with_cell("i1|9", 1)).replace("\nu", "\n"),
        spec=(
            ("user: {}", "user: {encode: identity, cardinality: 9}"),
            *listed('encode: {vocabulary_of: user}, separator: "|"'),
        ),
    ),
    "list with another separator": Case(
        "logs.csv, line 2: column 'item' is '0;7', and no cell of this list has its separator '|'; write `separator: "
        '";"`, or drop `separator` if the column has one value per row',
        log=lists("0;7"),
        spec=listed('separator: "|"'),
    ),
    "cross of two lists": Case(
        "feature_spec.two.encode.cross[1]: 'other' is a list, and so is 'item': nothing says which of their items "
        "belong together; keep one of them",
        spec=(
            (
                "item: {}",
                f"item: {LIST}\n  other: {LIST[:-1]}, column: day}}\n  two: {{encode: {{cross: [item, other]}}}}",
            ),
            ("onehot_categorical: [user, item]", "multihot_categorical: [item, other, two]"),
        ),
    ),
    "cross of a list among single ids": Case(
        "feature_spec.by_user.encode.cross[0]: 'item' is a list, and the cross has an id for each item; list 'by_user' "
        "in multihot_categorical",
        spec=(
            ("item: {}", f"item: {LIST}\n  by_user: {{encode: {{cross: [item, user], hash: 9}}}}"),
            ("[user, item]", "[user, by_user]\n  multihot_categorical: [item]"),
        ),
    ),
    "cross of single values among lists": Case(
        "feature_spec.by_user: has one value per row, and is in multihot_categorical; list it in another channel, or "
        "add an input that is a list",
        spec=(
            ("item: {}", "item: {}\n  by_user: {encode: {cross: [item, user], hash: 9}}"),
            ("[user, item]", "[user, item]\n  multihot_categorical: [by_user]"),
        ),
    ),
    "target statistics of a list": Case(
        "feature_spec.item.encode: target is for one value per row, and this is a list; "
        "write an encoding of ids, such as {hash: 1000}, or add a column",
        spec=(
            ("item: {}", 'item: {separator: "|", encode: {target: {label: liked}}}'),
            ("[user, item]", "[user]"),
        ),
    ),
    "list in brackets": Case(
        "logs.csv, line 2: column 'item' is '[0, 1]', in brackets like all cells of this list; write lists as text "
        'such as 1|2|3 with `separator: "|"`, or as lists of a parquet file',
        log=lists('"[0, 1]"'),
        spec=listed('separator: ", "'),
    ),
    "list in brackets without its separator": Case(
        "column 'item' is \"['i0']\", in brackets", log=lists("['i0']"), spec=listed('separator: "|"')
    ),
    "text among numbers": Case(
        "line 4: column 'price' is 'NA'; expected a number (float64); write `null: [\"NA\"]` beside `files` if this "
        "means a missing value",
        log=with_cell("NA", 2),
    ),
    "decimal comma": Case(
        "line 4: column 'price' is '2,5'; expected a number (float64); replace the comma by a point",
        log=with_cell('"2,5"', 2),
    ),
    "missing number": Case(
        "column 'price' is null in 1 of the training rows; say what replaces null, as with {fill: median}",
        log=with_cell("", 2),
        spec=(("{fill: median}, ", ""), ("random: {test: 0.3}", "last: {test: 0.3}")),
    ),
    "no number at all": Case(
        "price: no training row has a value; remove the column",
        log=HEADER + "".join(f"u,i,,2024-01-01,{i % 2}\n" for i in range(56)),
    ),
    "list without separator": Case(
        "feature_spec.item.separator: is missing: CSV files hold lists as text; write what separates the items",
        spec=(("onehot_categorical: [user, item]", "onehot_categorical: [user]\n  multihot_categorical: [item]"),),
    ),
    "text label": Case(
        '`encode: {map: {"no": 0, ...}}` for a label of texts',
        log=LOG.replace(",0\n", ",no\n").replace(",1\n", ",yes\n"),
    ),
    "similar label": Case(
        "logs.csv, line 4: the label liked is 'noo'; did you mean 'no'? Otherwise, add the text to "
        "feature_spec.liked.encode.map",
        log=with_cell("noo", 4).replace(",0\n", ",no\n").replace(",1\n", ",yes\n"),
        spec=(TEXT_LABEL,),
    ),
    "unknown label": Case(
        "line 4: the label liked is 'skipped'; expected one of 'yes', 'no'. Otherwise, add",
        log=with_cell("skipped", 4).replace(",0\n", ",no\n").replace(",1\n", ",yes\n"),
        spec=(TEXT_LABEL,),
    ),
    "map of numbers": Case(
        "feature_spec.liked.encode.map[2]: is the number 2; write the text in quotes",
        spec=(("liked: {}", "liked: {encode: {map: {2: 1, 1: 0}}}"),),
    ),
    "rating as label": Case(
        'line 4: the label liked is 4; expected 0 or 1; write `encode: {threshold: ">= X"}` with the least positive '
        "value, `task: regression` to predict the number",
        log=with_cell("4", 4),
    ),
    "missing label": Case(
        "line 4: the label liked is missing; remove such rows with `where`, or write `missing: ignore`",
        log=with_cell("", 4),
    ),
    "missing time": Case(
        "line 4: the time 'day' is missing, so the row is in no mapping; leave such rows out with `where:`",
        log=with_cell("", 3),
        spec=(BY_DAY,),
    ),
    "other date": Case(
        "line 4: column 'day' is '03.01.2024'; expected a timestamp such as 2014-10-21 or 2014-10-21T08:30:00; write "
        'its format, such as `format: "%d.%m.%Y %H:%M"`',
        log=with_cell("03.01.2024", 3),
        spec=(BY_DAY,),
    ),
    "time without unit": Case(
        "line 2: column 'day' is '1700000001'; expected a timestamp such as 2014-10-21 or 2014-10-21T08:30:00; write "
        "`unit: s`",
        log=LOG.replace("2024-01-", "17000000"),
        spec=(BY_DAY,),
    ),
    "negative weight": Case(
        "line 4: the sample weight price is -1.0; expected a number of at least 0",
        log=with_cell("-1", 2),
        spec=SPEC + "sample_weight: price\n",
    ),
}
SPECIFICATIONS = {
    "no specification": Case(
        "feature_spec.yaml: no such specification; name it with --feature_spec_in FILE, or write a first one: "
        "preprocess.py --infer",
        spec=None,
    ),
    "encoded specification": Case(
        "document: this is the specification of a dataset with encoded ids; pass the dataset to main.py, or its CSV "
        "files to transcode.py",
        spec=ENCODED_SPEC,
    ),
    "dtype str": Case(
        "feature_spec.user.dtype: is the string 'str'; write one of string, timestamp", LOG, user("dtype: str")
    ),
    "misspelt encoding": Case(
        "encode.hsah: unknown key of encode; did you mean 'hash'?", LOG, user("encode: {hsah: 9}")
    ),
    "tab in YAML": Case("line 3, column 1: not valid YAML", spec=SPEC.replace("  item", "\titem", 1)),
    "no test rows": Case(
        "mapping test has no rows (rows of each mapping: train: 56; day from 2024-01-01 00:00:00 to 2024-01-28 "
        "00:00:00); provide files with more rows, or change split",
        spec=((BY_DAY[0], BY_DAY[1].replace("2024", "2025")),),
    ),
    "no training rows": Case(
        "mapping train has no rows (rows of each mapping: test: 56; day from",
        spec=((BY_DAY[0], BY_DAY[1].replace("2024", "2023")),),
    ),
    "no validation rows": Case(
        "mapping valid has no rows (rows of each mapping: train: ",
        spec=(("random: {test: 0.3}", "last: {valid: 0.001, test: 0.3}"),),
    ),
    "no rows left": Case(
        "mapping train has no rows (rows of each mapping: none); provide files with more rows, or change split or "
        "where",
        spec=SPEC + "where: user == nobody\n",
    ),
}
ARGUMENTS = {
    "existing output": Case(
        "data: already contains a dataset (feature_spec.yaml); choose another folder, or delete that one",
        files=(("data/feature_spec.yaml", ""),),
    ),
    "output is a file": Case("data: is a file, the output must be a folder", files=(("data", ""),)),
    "output is the input": Case("raw: already contains a dataset", arguments=("--input", "{raw}", "--output", "{raw}")),
    "little memory": Case(
        "--memory_limit 100MiB: is too small for 1 worker and 4 columns; write at least --memory_limit 462MiB",
        arguments=(*TO_DATA, "--memory_limit", "100MiB"),
    ),
    "memory without unit": Case(
        "--memory_limit: expected a size with its unit, such as 4GB or 1500MiB, got '4'",
        arguments=(*TO_DATA, "--memory_limit", "4"),
    ),
    "no workflow": Case(
        "raw: holds no raw_spec.json; give the folder workflow/ of a dataset that preprocess.py wrote",
        arguments=("--workflow", "{raw}", *TO_DATA),
    ),
    "dataset as workflow": Case(
        "raw: holds no raw_spec.json; write {raw}/workflow",
        arguments=("--workflow", "{raw}", *TO_DATA),
        files=(("raw/workflow/raw_spec.json", "{}"),),
    ),
    "no input": Case(
        "--input: needs the folder of the raw files (or use --infer to write a first specification)",
        arguments=TO_DATA[2:],
    ),
    "no output": Case("--output: needs the folder of the new dataset", arguments=TO_DATA[:2]),
    "input does not exist": Case(
        "--input {raw}/log.csv: no such file or folder", arguments=("--input", "{raw}/log.csv", *TO_DATA[2:])
    ),
    "file without specification": Case(
        "none.yaml: no such specification; name it with --feature_spec_in FILE, or write a first one: preprocess.py "
        "--infer {raw}/logs.csv --label COLUMN --write_spec none.yaml",
        arguments=("--input", "{raw}/logs.csv", *TO_DATA[2:], "--feature_spec_in", "none.yaml"),
    ),
    "folders": Case("--input: expected one folder, or files", arguments=("--input", "{raw}", "{raw}", *TO_DATA[2:])),
    "label without infer": Case("--label: only with --infer", arguments=(*TO_DATA, "--label", "liked")),
    "keep without workflow": Case(
        "--keep is only for new rows; without a --workflow, write `keep: [COLUMN]` into the specification",
        arguments=(*TO_DATA, "--keep", "user"),
    ),
    "inferred label": Case(
        "--label like: no such column in {raw}/logs.csv; did you mean 'liked'?",
        arguments=("--infer", "{raw}/*.csv", "--label", "like", *FIRST_SPEC),
    ),
    "inferred label of no name": Case(
        "--label x: no such column in {raw}/logs.csv; the columns are user, item, price, day, liked",
        arguments=("--infer", "{raw}/*.csv", "--label", "x", *FIRST_SPEC, *TO_DATA[2:]),
    ),
    "inferred without label": Case("--infer: needs --label COLUMN", arguments=("--infer", "{raw}", *FIRST_SPEC)),
    "inferred from gzip": Case(
        "{raw}/logs.csv: is gzip-compressed, expected plain text; rename it to logs.csv.gz",
        log=gzip.compress(LOG.encode()),
        arguments=("--infer", "{raw}/*.csv", "--label", "liked", *FIRST_SPEC),
    ),
    "inferred from nothing": Case(
        "; {raw} holds feature_spec.yaml, logs.csv",
        arguments=("--infer", "{raw}/*.tsv", "--label", "liked", *FIRST_SPEC),
    ),
    "existing specification": Case(
        "feature_spec.yaml: exists; remove it, or give another name to --write_spec",
        arguments=("--infer", "{raw}/*.csv", "--label", "liked", "--write_spec", "{raw}/feature_spec.yaml"),
    ),
}
CASES = {**HEADERS_AND_SEPARATORS, **FILES, **CELLS, **SPECIFICATIONS, **ARGUMENTS}


def write(case: Case, folder: Path) -> None:
    """Write the files of a case."""
    (folder / "raw").mkdir()
    content = case.log if isinstance(case.log, bytes) else case.log.encode()
    (folder / "raw" / case.name).write_bytes(content)
    for name, text in case.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if case.spec is None:
        return
    spec = case.spec if isinstance(case.spec, str) else SPEC
    for old, new in () if isinstance(case.spec, str) else case.spec:
        assert spec.count(old) == 1, old
        spec = spec.replace(old, new)
    (folder / "raw" / "feature_spec.yaml").write_text(spec)


def code_of(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The exit code of a command that may exit by itself."""
    try:
        return command(arguments)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mistakes(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(case, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    names = {"{raw}": str(tmp_path / "raw"), "{data}": str(tmp_path / "data")}

    def filled(text: str) -> str:
        for placeholder, path in names.items():
            text = text.replace(placeholder, path)
        return text

    assert code_of(preprocess.main, [filled(argument) for argument in case.arguments]) == 2
    error = capsys.readouterr().err
    assert filled(case.message) in error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (main.main, ["--dataset_path", "{raw}", "--results_dir", "{data}"]),
        (transcode.main, ["--input", "{raw}", "--output", "{data}"]),
    ],
    ids=["main", "transcode"],
)
def test_raw_specification_given_to(command, arguments, tmp_path, capsys) -> None:
    write(Case(""), tmp_path)
    names = {"raw": tmp_path / "raw", "data": tmp_path / "data"}
    assert code_of(command, [argument.format(**names) for argument in arguments]) == 2
    assert (
        "only a raw specification says this; turn its files into a dataset with `python preprocess.py --input RAW"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "data").exists()
