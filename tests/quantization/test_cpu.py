from __future__ import annotations

import pytest

from optimum_qala.errors import ConfigurationError
from optimum_qala.quantization.cpu import choose_overflow_fix, describe_overflow_risk, read_cpu_flags


VNNI = {"x86_64": True, "avx512_vnni": True}
AVX_VNNI = {"x86_64": True, "avx2": True, "avx_vnni": True}
AVX2 = {"x86_64": True, "avx2": True, "avx512_vnni": False}
ARM = {"x86_64": False}


@pytest.mark.parametrize(
    ("setting", "flags", "fix", "reason"),
    [
        ("auto", VNNI, "disable", "this CPU has avx512_vnni, so"),
        ("auto", AVX_VNNI, "disable", "this CPU has avx_vnni, so"),
        ("auto", AVX2, "enable", "this x86 CPU has no VNNI, so int8 sums overflow"),
        ("auto", ARM, "disable", "not an x86"),
        ("enable", VNNI, "enable", "asked for; this CPU has avx512_vnni"),
        ("disable", AVX2, "disable", "asked for; this x86 CPU has no VNNI"),
    ],
)
def test_overflow_fix_follows_the_cpu(setting, flags, fix, reason):
    chosen, why = choose_overflow_fix(setting, flags)
    assert chosen == fix
    assert reason in why


def test_unknown_setting_is_refused():
    with pytest.raises(ConfigurationError, match=r"overflow_fix 'on' is not one of \['auto', 'enable', 'disable'\]"):
        choose_overflow_fix("on", VNNI)


@pytest.mark.parametrize(
    ("fix", "flags", "is_risky"),
    [
        ("disable", AVX2, True),
        (None, AVX2, True),
        ("enable", AVX2, False),
        ("disable", VNNI, False),
        ("disable", ARM, False),
    ],
)
def test_risk_is_described_only_without_vnni_and_fix(fix, flags, is_risky):
    risk = describe_overflow_risk(fix, flags)
    assert (risk is not None) == is_risky
    if risk:
        assert f"overflow_fix {fix!r}" in risk


def test_flags_of_this_cpu_are_read():
    flags = read_cpu_flags()
    assert isinstance(flags["x86_64"], bool)
    assert choose_overflow_fix("auto")[0] in ("enable", "disable")
