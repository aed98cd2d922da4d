"""What this machine's processor can do in hardware."""

from pathlib import Path

_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux calls them: of x86, and of ARM."""


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Tell whether the processor multiplies bfloat16 numbers itself; None where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & _BF16) if flags else None
