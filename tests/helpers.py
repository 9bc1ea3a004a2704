"""Shared by the tests: where the project is, where real data is, and small datasets."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import gen_csv
import transcode
from trainer.logging.log import read_log

ROOT = Path(__file__).resolve().parent.parent


def real_data(dataset: str) -> Path:
    """The folder of a published dataset; skips the test where it is absent."""
    folder = Path(os.environ.get("RECIPE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / dataset).is_dir():
        pytest.skip(f"no real data: {folder / dataset} is absent (RECIPE_TEST_DATA names another folder)")
    return folder / dataset


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with the project importable and without variables of an outer launcher."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD_", "OMPI_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return inherited | {"PYTHONPATH": str(ROOT), "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"} | extra


def run_program(
    arguments: Sequence[str | Path],
    *,
    workers: int = 1,
    timeout: float = 300,
    cwd: Path = ROOT,
    under: Sequence[str] = (),
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS`, with several workers under horovodrun; returns it with its output as text.

    `under` is a command that starts all this.
    """
    command = [sys.executable, *map(str, arguments)]
    if workers > 1:
        command = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers), *command]
    return subprocess.run(
        [*under, *command],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def make_dataset(folder: Path, spec: Path, *, rows: int, signal: float = 2.0, seed: int = 0) -> Path:
    """A parquet dataset of random rows for a CSV specification, through the tools that users run."""
    csv, parquet = folder / "csv", folder / "data"
    csv.mkdir(parents=True)
    sized = ["--size", str(rows), "--seed", str(seed), "--signal", str(signal)]
    must(gen_csv.main(["--feature_spec_in", str(spec), "--output", str(csv), *sized]))
    must(transcode.main(["--input", str(csv), "--output", str(parquet), "--chunk_size", str(max(1, rows // 4))]))
    return parquet


def words(flags: str) -> list[str]:
    """The words of flags as they are typed."""
    return shlex.split(flags)


def must(code: int) -> None:
    """Fails the test if a command fails."""
    assert code == 0, f"exit code {code}"


def losses(results_dir: Path) -> dict[int, float]:
    """Step -> training loss of a log."""
    records = [record for record in read_log(results_dir / "log.json") if record["type"] == "LOG"]
    return {record["step"][0]: record["data"]["loss"] for record in records if "loss" in record["data"]}


def metrics(results_dir: Path) -> dict[str, float]:
    """Returns the content of metrics.json."""
    return json.loads((results_dir / "metrics.json").read_text())


def selected(request: pytest.FixtureRequest, argument: str) -> list[str]:
    """The values of a parameter in the selected tests of the module that asks: what its fixture has to prepare."""
    items = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    given = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return list(dict.fromkeys(params[argument] for params in given if argument in params))


def left_to_all(values: Iterable[str], usual: Collection[str]) -> list[Any]:
    """Parameters of which those that are not usual are slow ones, run by scripts/test.sh --all alone."""
    return [value if value in usual else pytest.param(value, marks=pytest.mark.slow) for value in values]
