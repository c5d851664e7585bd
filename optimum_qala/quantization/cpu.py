"""What the CPU means for int8: without VNNI its products of 8-bit numbers may overflow."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.configuration import OVERFLOW_FIXES


__all__ = ["choose_overflow_fix", "describe_overflow_risk", "read_cpu_flags"]

# Any of them adds products of 8-bit numbers in 32 bits. AVX2 and AVX-512 without them add pairs in 16 bits, which
# saturate; that is how int8 question answering has lost nearly all its F1 on such CPUs.
VNNI_FLAGS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


def read_cpu_flags() -> dict[str, bool]:
    """Return what this CPU has, by flag, and "x86_64"."""
    capabilities = torch.cpu.get_capabilities()
    flags = {name: value for name, value in capabilities.items() if isinstance(value, bool)}
    return {**flags, "x86_64": capabilities.get("architecture") == "x86_64"}


def has_safe_int8(flags: Mapping[str, bool]) -> bool:
    """Tell whether sums of 8-bit products are exact."""
    return not flags.get("x86_64", False) or any(flags.get(name, False) for name in VNNI_FLAGS)


def choose_overflow_fix(setting: str, flags: Mapping[str, bool] | None = None) -> tuple[str, str]:
    """Decide whether weights get 7 bits instead of 8, so that no sum overflows.

    Args:
        setting: "auto", "enable" or "disable".
        flags: What the CPU has; this one by default.

    Returns:
        "enable" or "disable", and why, as a sentence.

    Raises:
        ConfigurationError: If `setting` is none of these.
    """
    if setting not in OVERFLOW_FIXES:
        raise ConfigurationError(f"overflow_fix {setting!r} is not one of {list(OVERFLOW_FIXES)}")
    flags = read_cpu_flags() if flags is None else flags
    found = [name for name in VNNI_FLAGS if flags.get(name, False)]
    if not flags.get("x86_64", False):
        cpu = "this CPU is not an x86, so int8 sums do not overflow"
    elif found:
        cpu = f"this CPU has {found[0]}, so int8 sums do not overflow"
    else:
        cpu = "this x86 CPU has no VNNI, so int8 sums overflow unless weights have 7 bits"
    if setting == "auto":
        return ("disable" if has_safe_int8(flags) else "enable"), cpu
    return setting, f"asked for; {cpu}"


def describe_overflow_risk(overflow_fix: str | None, flags: Mapping[str, bool] | None = None) -> str | None:
    """Say what is wrong if a model was quantized for CPUs with VNNI and this one has none.

    Args:
        overflow_fix: What the model was quantized with; None if that is not known.
        flags: What the CPU has; this one by default.

    Returns:
        A sentence, or None if all is well.
    """
    if overflow_fix == "enable" or has_safe_int8(read_cpu_flags() if flags is None else flags):
        return None
    return (
        f"this CPU has no VNNI and the model was quantized with overflow_fix {overflow_fix!r}, so its int8 sums may "
        "overflow and answers may be wrong; quantize it again with overflow_fix='enable'"
    )
