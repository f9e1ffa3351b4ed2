"""The filter, run instruction by instruction as the kernel does."""

import errno
import struct

import pytest

from pipeline.rewards.seccomp import MACHINES, seccomp_filter

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
CALLS = {  # of x86_64 and aarch64
    "read": (0, 63),
    "execve": (59, 221),
    "futex": (202, 98),
    "socketpair": (53, 199),
    "socket": (41, 198),
    "ptrace": (101, 117),
    "shmget": (29, 194),
    "mount": (165, 40),
    "unshare": (272, 97),
    "kexec_load": (246, 104),
    "clone": (56, 220),
    "clone3": (435, 435),
}


def judge(machine: str, arch: int, number: int, argument: int = 0) -> int:
    """What the filter returns for a system call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, argument, 0, 0, 0, 0, 0)
    program = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, constant = program[at]
        at += 1
        match code:
            case 0x20:
                loaded = struct.unpack_from("=I", data, constant)[0]
            case 0x15:
                at += if_true if loaded == constant else if_false
            case 0x35:
                at += if_true if loaded >= constant else if_false
            case 0x45:
                at += if_true if loaded & constant else if_false
            case 0x06:
                return constant
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_allowed_and_what_is_refused(machine: str) -> None:
    column, arch = MACHINES[machine]

    def of(call: str, argument: int = 0) -> int:
        return judge(machine, arch, CALLS[call][column], argument)

    assert {of(call) for call in ("read", "execve", "futex", "socketpair")} == {ALLOW}
    refused = ("socket", "ptrace", "shmget", "mount", "unshare", "kexec_load")
    assert {of(call) for call in refused} == {ERRNO | errno.EPERM}
    assert of("clone", 0x3D0F00) == ALLOW  # a thread
    assert of("clone", 17) == ALLOW  # a process
    assert of("clone", 0x10000000 | 17) == ERRNO | errno.EPERM  # with a user namespace of its own
    assert of("clone3") == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_the_calls_of_another_machine_are_the_end(machine: str) -> None:
    assert judge(machine, 0x40000003, 5) == KILL  # i386, whose numbers mean other calls
    assert judge(machine, MACHINES[machine][1], 0x40000000 | 41) == ERRNO | errno.EPERM  # x32
