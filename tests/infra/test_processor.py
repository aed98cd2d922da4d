"""What the system says of its processor."""

import pytest

from infra.processor import multiplies_bf16


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 sse\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu avx2 avx512f avx512_vnni\n", False),
        ("Features : fp asimd bf16\n", True),
        ("Features : fp asimd\n", False),
        ("processor : 0\nmodel : bf16\n", None),
    ],
)
def test_bf16_is_among_the_flags_or_not(said, expected, tmp_path):
    (tmp_path / "cpuinfo").write_text(said)
    assert multiplies_bf16(tmp_path / "cpuinfo") is expected
    assert multiplies_bf16(tmp_path / "none") is None
