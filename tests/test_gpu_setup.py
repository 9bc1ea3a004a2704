"""scripts/setup.sh --gpu, as the GPU image runs it: packages install and import, and Horovod compiles with CUDA."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from packaging.version import Version

from benchmarks.gpu import run_group
from tests.helpers import ROOT

MINUTES = 20  # for a machine that is busy: most of the time goes into compiling Horovod
# What setup.sh says where it cannot work, before it has changed anything.
CANNOT = ("no nvcc found", "GB free; the gpu packages need", "this machine lacks", "is the package index reachable?")
IMPORTED = ("cudf", "cupy", "dask_cudf", "numba", "rmm", "tensorflow", "keras", "pyarrow", "pandas", "numpy")
# Imports as the recipe does, and prints versions and builds. cuDF and CuPy load their libraries; only calls need a GPU.
PROGRAM = f"""
import importlib, json
from data.encoding.nvtabular_setup import Dataset, Workflow
found = {{name: importlib.import_module(name) for name in {IMPORTED}}}
import horovod.tensorflow as hvd
versions = {{name: module.__version__ for name, module in found.items() if hasattr(module, "__version__")}}
cuda = found["tensorflow"].sysconfig.get_build_info()["cuda_version"]
print(json.dumps({{"versions": versions, "cuda": cuda, "nccl": hvd.nccl_built()}}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The folder of an environment with the GPU list; removed after the tests, as it takes 9 GB."""
    folder = tmp_path_factory.mktemp("gpu")
    own = {"VENV": str(folder / "venv"), "WHEEL_CACHE": str(folder / "wheels"), "PYTHON": sys.executable}
    # One kind of GPU: kernels for each of them take as long to compile.
    own |= {"HOROVOD_BUILD_CUDA_CC_LIST": os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST", "90")}
    try:
        ended = run_group(["bash", "scripts/setup.sh", "--gpu"], own, MINUTES * 60)
        if ended.code is None or any(reason in ended.how for reason in CANNOT):
            pytest.skip(f"the GPU packages cannot be installed here, or not within {MINUTES} minutes: {ended.how}")
        assert ended.code == 0, ended.how
        yield folder / "venv"
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_gpu_packages_import_in_their_locked_versions(environment):
    command = [environment / "bin" / "python", "-c", PROGRAM]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    locked = dict(re.findall(r"^([\w-]+)==([^ ]+)", (ROOT / "requirements" / "gpu.txt").read_text(), re.MULTILINE))
    named = {"cudf": "cudf-cu12", "cupy": "cupy-cuda12x", "dask_cudf": "dask-cudf-cu12", "rmm": "rmm-cu12"}
    for package, version in found["versions"].items():
        assert Version(version) == Version(locked[named.get(package, package)]), package
    assert {"cudf", "tensorflow", "rmm"} <= found["versions"].keys()
    assert found["cuda"].startswith("12.") and found["nccl"]


@pytest.mark.slow
def test_horovod_is_compiled_with_cuda_and_linked_to_nccl(environment):
    (library,) = environment.glob("lib/python3*/site-packages/horovod/tensorflow/mpi_lib*.so")
    program = ["readelf", "--wide", "--sections", "--dynamic", library]
    sections = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"NEEDED.*\[libnccl\.so\.2\]", sections)) == 1
    assert re.search(r"R(UN)?PATH.*nvidia/nccl/lib", sections)
    assert len(re.findall(r" \.nv_fatbin ", sections)) == 1  # kernels
