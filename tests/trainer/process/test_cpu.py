from pathlib import Path

import pytest

from trainer.process.device import has_units, own_flags

X86 = """processor\t: 0
model name\t: some processor
flags\t\t: fpu avx2 avx512f{}
bugs\t\t: spectre_v1

processor\t: 1
"""


@pytest.mark.parametrize(
    ("more", "bfloat16", "float16"),
    [
        ("", False, False),
        (" avx512_bf16", True, False),
        (" amx_tile amx_bf16", True, False),
        (" avx512_fp16", False, True),
    ],
)
def test_vector_units_are_read_from_processor_flags(tmp_path: Path, more: str, bfloat16: bool, float16: bool):
    file = tmp_path / "cpuinfo"
    file.write_text(X86.format(more))
    flags = own_flags(file)
    assert {"fpu", "avx512f"} <= flags and "spectre_v1" not in flags
    assert [has_units(dtype, flags) for dtype in ("bfloat16", "float16", "float32")] == [bfloat16, float16, True]


def test_processor_without_flags_is_left_to_tensorflow(tmp_path: Path):
    file = tmp_path / "other"
    file.write_text("processor: 0\nFeatures: fp asimd\n")
    for flags in (own_flags(file), own_flags(tmp_path / "absent")):
        assert flags == frozenset() and has_units("bfloat16", flags)
