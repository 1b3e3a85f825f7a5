"""Run a command on a kernel that, for it and all that it starts, has no openat2 (Linux 5.6): seccomp answers ENOSYS.

old_kernel.py COMMAND [ARGUMENT…]
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_OPENAT2: Final = 437  # on every architecture


def without_openat2() -> None:
    """Install the filter, which root may do without giving up anything else (seccomp(2))."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, 0),  # the number of the call, at the beginning of struct seccomp_data
            (_EQUAL, 0, 1, _OPENAT2),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter")


if __name__ == "__main__":
    without_openat2()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # a fixed program, and no shell
