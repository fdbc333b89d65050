"""Memory that a training frees and takes again at every step stays with the process.

glibc gives each block of more than 128 kB back to the system and takes it anew, zeroed page by page: on a CPU up to
a sixth of the time of a training step. What is computed is the same.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of `mallopt(3)`."""
NEVER = 2**31 - 1
GROWTH = 64 * 2**20


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed, for the rest of the process; False where the C library is another."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    wanted = {M_MMAP_THRESHOLD: NEVER, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: GROWTH}
    return all(library.mallopt(number, value) for number, value in wanted.items())
