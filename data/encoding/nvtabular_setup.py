"""The one place that imports NVTabular: take it from here, so that what it needs is always set first.

    from data.encoding.nvtabular_setup import Dataset, Workflow, dispatch, ops

NVTabular 23.8 reads Dask's settings when it is imported, imports TensorFlow (ten seconds that no
preprocessing needs, and on a GPU half of its memory) only to know its dtypes, and warns about what is
meant to be so. Importing this module deals with all three.
"""

import importlib
import os
import sys
import warnings
from types import ModuleType
from typing import Any

# Dask's newer data frames and string columns are unknown to NVTabular. Workers inherit the environment.
DASK_SETTINGS = {
    "dataframe.query-planning": ("DASK_DATAFRAME__QUERY_PLANNING", False),
    "dataframe.convert-string": ("DASK_DATAFRAME__CONVERT_STRING", False),
}
HARMLESS = (
    "The legacy Dask DataFrame implementation is deprecated",
    "Tensorflow dtype mappings did not load successfully",
    "PyTorch dtype mappings did not load successfully",
    "Triton dtype mappings did not load successfully",
    "Initializing an NVTabular Dataset in CPU mode",
    "Running on a single-machine scheduler",
)


def _set_dask() -> None:
    for variable, value in DASK_SETTINGS.values():
        os.environ[variable] = str(value)
    dask = importlib.import_module("dask")
    dask.config.set({name: value for name, (_, value) in DASK_SETTINGS.items()})
    frames = sys.modules.get("dask.dataframe")
    if frames is not None and frames._dask_expr_enabled():
        raise RuntimeError(
            "dask.dataframe was imported with query planning before NVTabular, which cannot use it; "
            "import data.encoding.nvtabular_setup first"
        )


def _import_without_tensorflow(name: str) -> ModuleType:
    """Imports a module that takes TensorFlow where there is one; here there is none, unless it is loaded already."""
    if "tensorflow" in sys.modules:
        return importlib.import_module(name)
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["tensorflow"]


for _message in HARMLESS:
    warnings.filterwarnings("ignore", message=_message)
_set_dask()
nvtabular: Any = _import_without_tensorflow("nvtabular")
ops: Any = _import_without_tensorflow("nvtabular.ops")
dispatch: Any = _import_without_tensorflow("merlin.core.dispatch")
Workflow: Any = nvtabular.Workflow
Dataset: Any = nvtabular.Dataset
from_map: Any = importlib.import_module("dask.dataframe").from_map
ON_GPU: bool = dispatch.HAS_GPU and dispatch.cudf is not None


def to_device(frame: Any) -> Any:
    """A pandas frame where NVTabular works: on the GPU as a cuDF frame, or as it is where there is none."""
    return dispatch.cudf.from_pandas(frame) if ON_GPU else frame
