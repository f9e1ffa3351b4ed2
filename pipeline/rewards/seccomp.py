"""Which system calls a program in the sandbox may not make, as a filter that the kernel runs (seccomp, classic BPF).

Namespaces and limits contain a program by themselves. The filter closes what they leave open: memory that no limit
counts (System V segments, memory files), sockets of any kind, further namespaces, and the rarely used calls in which
most holes of the kernel were found. It is a list of what is refused, so a new release of Python keeps running.
"""

import errno
import platform
import struct

_DENIED = {  # name: number on x86_64, number on aarch64
    "socket": (41, 198),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW…: mount, cgroup, uts, ipc, user, pid, net; a time namespace takes another call
_X32 = 0x40000000  # the second set of numbers of x86_64, under which the same calls could be made

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine: column of the table above, and the kernel's name for its calls (AUDIT_ARCH)."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data; the argument's low half
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str = "") -> bytes:
    """The filter as bubblewrap reads it: an array of struct sock_filter. `machine` must be one of MACHINES."""
    column, arch = MACHINES[machine or platform.machine()]
    denied = [numbers[column] for numbers in _DENIED.values()]
    # A jump says how many instructions to skip where its test holds, and where it does not.
    instructions = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, len(denied) + 5, 0, _X32),
        *((_EQUAL, len(denied) + 4 - place, 0, number) for place, number in enumerate(denied)),
        (_EQUAL, 0, 2, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_ANY_BIT, 2, 1, _NEW_NAMESPACES),
        (_EQUAL, 2, 0, _CLONE3[column]),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # the C library then asks by `clone`, whose argument can be read
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
