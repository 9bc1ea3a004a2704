"""Import NVTabular with the settings that it needs. All other modules import NVTabular from here:

    from data.encoding.nvtabular_setup import Dataset, Workflow, dispatch, ops

NVTabular 23.8 reads Dask's settings at import, imports TensorFlow only for its dtypes (which takes ten seconds, and
half of the memory of a GPU), emits irrelevant warnings, and logs a traceback of each exception that an operator raises,
which the caller reports. Importing this module takes care of all four.
"""

import importlib
import logging
import os
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

# NVTabular does not support Dask's newer data frames and string columns. Environment variables also reach workers.
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
    """Import a module as if TensorFlow were not installed, unless TensorFlow is already loaded."""
    if "tensorflow" in sys.modules:
        return importlib.import_module(name)
    # None makes `import tensorflow` raise ModuleNotFoundError, which NVTabular handles.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["tensorflow"]


def _arrow_lists(executors: Any) -> None:
    """Let NVTabular take the types of Arrow lists from their columns; it looks at the first item, if there is one."""
    is_list, item_dtype = executors.is_list_dtype, executors.list_val_dtype

    def is_list_dtype(series: Any) -> bool:
        arrow = getattr(getattr(series, "dtype", None), "pyarrow_dtype", None)
        return bool(is_list(series) if arrow is None else pa.types.is_list(arrow))

    def list_val_dtype(series: Any) -> Any:
        arrow = getattr(series.dtype, "pyarrow_dtype", None)
        return item_dtype(series) if arrow is None else np.dtype(arrow.value_type.to_pandas_dtype())

    executors.is_list_dtype, executors.list_val_dtype = is_list_dtype, list_val_dtype


for _message in HARMLESS:
    warnings.filterwarnings("ignore", message=_message)
logging.getLogger("merlin").setLevel(logging.CRITICAL)
_set_dask()
nvtabular: Any = _import_without_tensorflow("nvtabular")
ops: Any = _import_without_tensorflow("nvtabular.ops")
dispatch: Any = _import_without_tensorflow("merlin.core.dispatch")
_arrow_lists(importlib.import_module("merlin.dag.executors"))
Workflow: Any = nvtabular.Workflow
Dataset: Any = nvtabular.Dataset
Schema: Any = importlib.import_module("merlin.schema").Schema
global_dask_client: Any = _import_without_tensorflow("merlin.core.utils").global_dask_client
from_map: Any = importlib.import_module("dask.dataframe").from_map
ON_GPU: bool = dispatch.HAS_GPU and dispatch.cudf is not None


def to_device(frame: Any) -> Any:
    """Move a pandas frame to where NVTabular works: a cuDF frame on the GPU if there is one, else unchanged."""
    return dispatch.cudf.from_pandas(frame) if ON_GPU else frame
