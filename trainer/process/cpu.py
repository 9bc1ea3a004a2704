"""What this machine's processor can multiply. Needs no TensorFlow."""

from functools import cache
from pathlib import Path

# Flags of /proc/cpuinfo that tell of units for products in a type; a processor needs one of them.
_UNITS = {"bfloat16": {"avx512_bf16", "amx_bf16"}, "float16": {"avx512_fp16", "amx_fp16"}}


def has_units(dtype: str, flags: frozenset[str]) -> bool:
    """Whether a processor with these flags multiplies in a type, instead of converting it number by number.

    float32 and wider types need no flag; without any flags (another kind of processor) it is taken to have the units.
    """
    return not flags or dtype not in _UNITS or bool(_UNITS[dtype] & flags)


@cache
def own_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of this machine's processor; none where the file, or its line of flags, is not there."""
    if not cpuinfo.exists():
        return frozenset()
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    return next((frozenset(value.split()) for key, _, value in lines if key.strip() == "flags"), frozenset())
