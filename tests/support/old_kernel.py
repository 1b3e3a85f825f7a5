"""Run a command on a kernel that, for it and all that it starts, is older: seccomp answers ENOSYS.

old_kernel.py 5.12|5.6 COMMAND [ARGUMENT…]: without what came with that version of Linux, or later.
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
_CALLS: Final = {"5.12": (442,), "5.6": (442, 437)}  # mount_setattr, openat2, on every architecture


def without(calls: tuple[int, ...]) -> None:
    """Install the filter against the *calls*, which root may do without giving up anything else (seccomp(2))."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, 0),  # the number of the call, at the beginning of struct seccomp_data
            *((_EQUAL, len(calls) - number, 0, call) for number, call in enumerate(calls)),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter")


if __name__ == "__main__":
    without(_CALLS[sys.argv[1]])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # a fixed program, and no shell
