"""Whatever a file holds, reading it gives a specification or a DataError, nothing else."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from tests.data.spec_strategies import damaged_documents, damaged_files


def read(content: bytes, folder: Path) -> FeatureSpec | DataError:
    """Returns the specification or its DataError; any other exception fails the test."""
    path = folder / "feature_spec.yaml"
    path.write_bytes(content)
    try:
        return FeatureSpec.read(path)
    except DataError as error:
        assert str(error).startswith(str(path))
        return error


@given(content=st.binary(max_size=100) | damaged_files() | damaged_documents())
@settings(max_examples=300, deadline=None)
def test_damaged_files(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    spec = read(content, folder)
    if isinstance(spec, FeatureSpec):
        spec.write(folder / "again.yaml")
        assert FeatureSpec.read(folder / "again.yaml").channels == spec.channels


@given(content=st.text(alphabet="ab:- []{},#&*!|>'\"%@`?\n\t0.~=<", max_size=60))
@settings(max_examples=200, deadline=None)
def test_mixtures_of_yaml_indicators(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert isinstance(read(content.encode(), tmp_path_factory.getbasetemp()), DataError)
