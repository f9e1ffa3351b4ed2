"""The kernels of cpp/, compiled for this machine's processor at first use and kept beside Python's own byte code.

Without a C++ compiler, or on an accelerator, the decoder computes the same by torch's operators: on CPUs up to twice
as slow, and one warning says so (`r1flow doctor` too).
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import threading
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.files import atomic_file

SOURCES = Path(__file__).with_name("cpp")
SOURCE = SOURCES / "kernels.cpp"  # takes in the others
COMPILERS = ("c++", "g++", "clang++")
# Vectors of the processor at hand, fused multiply-adds, and no care for errno or floating-point traps, which
# would keep loops from becoming vector code. Nothing here reorders a sum.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-fopenmp", "-Wno-psabi", "-Wno-ignored-attributes"),
)
BUILD_SECONDS = 120

logger = logging.getLogger(__name__)
_lock = threading.Lock()


class CannotBuildError(Exception):
    """Why there are no kernels on this machine."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there are none; says why once."""
    with _lock:  # of two threads that ask first one builds
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return load()
    except CannotBuildError as error:
        logger.warning("no CPU kernels: %s; models run by torch's operators, up to twice as slow", error)
        return None


def load() -> ctypes.CDLL:
    """Build the kernels if need be and load them. Raises CannotBuildError where that cannot be done."""
    try:
        return ctypes.CDLL(str(build()))
    except OSError as error:
        raise CannotBuildError(str(error)) from error


@cache
def _arguments() -> dict[str, int]:
    """How many arguments each kernel takes, by its declaration: another number would be no error but corrupt memory."""
    declared = re.findall(r"^void (\w+)\(int (?:threads|/\* threads \*/)(.*?)\) \{", _code(), re.M | re.S)
    return {name: rest.count(",") for name, rest in declared}


def _code() -> str:
    return "".join(path.read_text("utf-8") for path in sorted(SOURCES.glob("*.*")))


def build() -> Path:
    """Compile cpp/kernels.cpp unless that was done already. Raises CannotBuildError with the reason."""
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise CannotBuildError(f"no C++ compiler ({', '.join(COMPILERS)})")
    compiler = shlex.split(found)
    # OpenMP's threads are torch's own where torch brings its library along: two pools would keep each other waiting.
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    link = [str(openmp[0]), f"-Wl,-rpath,{openmp[0].parent}"] if openmp else ["-fopenmp"]
    key = hashlib.sha256()
    for part in (_code().encode(), *map(str.encode, (*compiler, *FLAGS, *link)), _processor()):
        key.update(part + b"\0")
    target = Path(cache_from_source(str(SOURCE.with_suffix(".py")))).with_name(f"kernels-{key.hexdigest()[:16]}.so")
    if target.is_file():
        return target
    try:
        with atomic_file(target) as temporary:
            _run(*compiler, *FLAGS, "-shared", str(SOURCE), "-o", str(temporary), *link)
    except OSError as error:
        raise CannotBuildError(str(error)) from error
    return target


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"{command[0]} took more than {BUILD_SECONDS} s") from None
    if done.returncode != 0:
        raise CannotBuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _processor() -> bytes:
    """What code for this processor must not be taken for by another one that shares the folder."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return platform.processor().encode()
    lines = information.read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these: float32 in the CPU's memory, and they are there.

    Not under an autocast to anything but bfloat16, which the products among them can do (`in_bfloat16`).
    """
    return (
        all(
            tensor.device.type == "cpu"
            and tensor.dtype == torch.float32
            and type(tensor) in (Tensor, nn.Parameter)  # subclasses may have no memory of their own
            for tensor in tensors
        )
        and (not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") == torch.bfloat16)
        and library() is not None
    )


def in_bfloat16() -> bool:
    """Whether products are to round what they multiply to bfloat16. Sums and all else stay float32."""
    return torch.is_autocast_enabled("cpu")


def call(function: str, *arguments: Any) -> None:
    """Call a kernel: its number of threads comes first, tensors go as pointers to contiguous memory, None as null.

    Whatever is neither tensor, float nor integer goes as ctypes takes it.
    """
    kernels = library()
    assert kernels is not None
    assert len(arguments) == _arguments()[function], f"{function}: {len(arguments)} arguments"
    getattr(kernels, function)(torch.get_num_threads(), *map(_argument, arguments))


def strided(tensor: Tensor) -> ctypes.c_void_p:
    """A tensor for a kernel that is told its strides."""
    return ctypes.c_void_p(tensor.data_ptr())


def _argument(value: Any) -> Any:
    match value:
        case Tensor():
            assert value.is_contiguous()
            return strided(value)
        case int():
            return ctypes.c_int64(value)
        case float():
            return ctypes.c_float(value)
    return value
