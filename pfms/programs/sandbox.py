"""Takes from this process what it no longer needs: the network, other programs, other files.

The kernel lets an ordinary user do this: by a seccomp filter (since Linux 3.17) and by Landlock
(5.13). Neither can be undone, and what this process starts is bound as well. Used by the programs
beside it; it imports nothing of pfms.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

_PR_SET_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_ASK_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# What each version of Landlock added: refer, truncate, ioctl on devices.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_TCP_RIGHTS = 0b11  # bind and connect, since version 4
_SCOPES = 0b11  # abstract Unix sockets and signals, since version 6

# For each machine: its code in a seccomp filter, the number of seccomp itself, and of what is
# refused: socket, connect, execve, execveat, ptrace, process_vm_readv, process_vm_writev, kill,
# io_uring_setup (which could do some of the others).
_MACHINES = {
    "x86_64": (0xC000003E, 317, (41, 42, 59, 322, 101, 310, 311, 62, 425)),
    "aarch64": (0xC00000B7, 277, (198, 203, 221, 281, 117, 270, 271, 129, 425)),
}
_SET_FILTER, _ALL_THREADS = 1, 1
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000  # on x86_64, calls from here on are the same calls under other numbers


def enter(readable: Iterable[str]) -> list[str]:
    """Keep only what is open and `readable`; returns what could not be taken away, in words.

    Args:
        readable: Files and folders that may still be opened to read, with all that is below them;
            those that do not exist are ignored.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except AttributeError:
        return ["the network, other programs and other files (this is not Linux)"]
    left = []
    if not _refuse_calls(libc):
        left.append("the network and other programs (no seccomp)")
    if not _refuse_files(libc, readable):
        left.append("other files (no Landlock)")
    return left


def _refuse_calls(libc: ctypes.CDLL) -> bool:
    known = _MACHINES.get(platform.machine())
    if known is None:
        return False
    machine, seccomp, refused = known
    steps = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 0, len(refused) + 3, machine), (_LOAD, 0, 0, 0)]
    steps.append((_IF_AT_LEAST, len(refused) + 1, 0, _X32))
    steps += [(_IF_EQUAL, len(refused) - at, 0, number) for at, number in enumerate(refused)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    return not libc.syscall(seccomp, _SET_FILTER, _ALL_THREADS, program)


def _refuse_files(libc: ctypes.CDLL, readable: Iterable[str]) -> bool:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    files = sum(bits for since, bits in _FILE_RIGHTS.items() if version >= since)
    handled = struct.pack("=Q", files)
    if version >= 4:
        handled += struct.pack("=Q", _TCP_RIGHTS)
    if version >= 6:
        handled += struct.pack("=Q", _SCOPES)
    rules = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    try:
        for path in readable:
            _allow(libc, rules, path)
        return not libc.syscall(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE  # noqa: PTH112
    libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
    os.close(opened)
