"""Hostile programs are contained, leave nothing behind and get the verdict they deserve."""

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.errors import InputError
from pipeline.process import _PR_SET_CHILD_SUBREAPER, _prctl, adopt_orphans
from pipeline.rewards import containment, sandbox
from pipeline.rewards.code import verify_code
from pipeline.rewards.containment import probe, require_sandbox
from pipeline.rewards.sandbox import MIB, Limits, run
from tests.processes import lives, unless_gone
from tests.unit.rewards import hostile
from tests.unit.rewards.needs import needs_sandbox

GOLD = '[["", "42\\n"]]'
LIMITS = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=256 * MIB)
SECRET = "0123456789abcdef-secret"
CALLS = {"x86_64": {"clone": 56, "bpf": 321}, "aarch64": {"clone": 220, "bpf": 280}}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What a program could reach if the sandbox had a hole."""
    folder = tmp_path_factory.mktemp("outside")
    folder.chmod(0o777)
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o666)
    abstract = f"r1flow-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as internet,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as unnamed,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander,
    ):
        port = internet.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        local.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        unnamed.bind(f"\0{abstract}")
        for server in (internet, local, unnamed):
            server.listen()
        for server in (internet, local, unnamed, datagrams):
            server.setblocking(False)
        yield {
            "folder": str(folder),
            "port": port,
            "abstract": abstract,
            "pid": os.getpid(),
            "bystander": bystander.pid,
            "secret": SECRET,
            **CALLS.get(platform.machine(), {}),
        }
        for server in (internet, local, unnamed):
            with pytest.raises(BlockingIOError):
                server.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)
        assert bystander.poll() is None
        bystander.kill()


@pytest.fixture
def adopting() -> Iterator[set[psutil.Process]]:
    """What already runs below this process; until the test ends whatever slips out of a sandbox comes below it too."""
    adopt_orphans()
    before = set(psutil.Process().children(recursive=True))
    yield before
    _prctl(_PR_SET_CHILD_SUBREAPER, 0)
    psutil.wait_procs(set(psutil.Process().children()) - before, timeout=1)


def _unharmed(outside: dict[str, object], before: set[psutil.Process]) -> None:
    folder = Path(str(outside["folder"]))
    assert sorted(entry.name for entry in folder.iterdir()) == ["secret", "socket"]
    assert (folder / "secret").read_text() == SECRET
    deadline = time.monotonic() + 5
    while left := [child for child in set(psutil.Process().children(recursive=True)) - before if lives(child)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.02)


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.PROGRAMS)
def test_a_hostile_program_is_contained_and_gets_its_verdict(
    name: str, outside: dict[str, object], adopting: set[psutil.Process]
) -> None:
    expected = hostile.PROGRAMS[name][0].split(" or ")
    limits = LIMITS if "timed out" in expected else replace(LIMITS, wall_seconds=20.0)  # on a busy machine
    verdict = verify_code(hostile.program(name, outside), GOLD, limits)
    assert verdict.verdict in expected, verdict.reason
    _unharmed(outside, adopting)


@needs_sandbox
def test_a_program_gets_its_input_and_nothing_else() -> None:
    outcome = run(
        "import os, sys; print(sys.stdin.read(), sys.argv, sorted(os.environ), os.getuid())", "é\n\x00", LIMITS
    )
    assert outcome.output.decode() == "é\n\x00 ['/program.py'] ['HOME', 'LANG', 'PWD', 'PYTHONHASHSEED'] 65534\n"
    assert (outcome.status, outcome.ended, outcome.errors) == (0, "by itself", b"")


@needs_sandbox
def test_everyday_programs_run() -> None:
    program = """
import asyncio, collections, fractions, heapq, itertools, json, math, random, re, subprocess, sys, tempfile, threading
with tempfile.TemporaryFile() as file:
    file.write(b"x")
thread = threading.Thread(target=lambda: print("thread"))
thread.start()
thread.join()
async def main():
    print("asyncio")
asyncio.run(main())
print({"b", "a", "c"})
"""
    first, second = run(program, ""), run(program, "")
    assert first.status == 0, first.errors
    assert first.output.startswith(b"thread\nasyncio\n")
    assert first.output == second.output  # also the order of a set


@needs_sandbox
def test_programs_run_beside_each_other() -> None:
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda number: run(f"print({number})", "").output, range(24)))
    assert outcomes == [f"{number}\n".encode() for number in range(24)]


@needs_sandbox
def test_a_program_ends_with_the_one_who_asked() -> None:
    asking = "from pipeline.rewards.sandbox import run\nrun('import time; time.sleep(77)  # orphan', '')"
    process = subprocess.Popen([sys.executable, "-c", asking], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 20
    while not (programs := _programs_below(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    _gone, alive = psutil.wait_procs(programs, timeout=5)
    assert not [program for program in alive if lives(program)]


def _programs_below(pid: int) -> list[psutil.Process]:
    """All of them, once the program itself is among them."""
    below = psutil.Process(pid).children(recursive=True)
    return below if any(unless_gone(child.name, "").startswith("python") for child in below) else []


# A hole for each guarantee, and what the probe must find through it.
HOLES = {
    "--unshare-net": "connect over the network",
    "--unshare-pid": "see other processes",
    "--remount-ro": "write to its root folder",
    "--clearenv": "read the environment",
    "--size": "fill more than its share of /tmp",
    "--as": "take more than its share of memory",
    "--nproc": "start more than its share of threads",
}


@needs_sandbox
@pytest.mark.parametrize(("guarantee", "found"), HOLES.items())
def test_the_self_test_finds_a_hole(guarantee: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sandbox.command

    def without(limits: Limits, **files: int) -> list[str]:
        return _weakened(whole(limits, **files), guarantee)

    monkeypatch.setattr(sandbox, "command", without)
    assert found in probe()


def _weakened(command: list[str], guarantee: str) -> list[str]:
    command = [argument for argument in command if not argument.startswith(f"{guarantee}=")]
    if guarantee == "--unshare-net":  # with the filter on, nothing can connect anyhow
        at = command.index("--seccomp")
        del command[at : at + 2]
    if guarantee == "--clearenv":  # the environment that bubblewrap gets is empty as well
        command[command.index("--chdir") : command.index("--chdir")] = ["--setenv", "TOKEN", "x"]
    elif guarantee in command:
        at = len(command) - 1 - command[::-1].index(guarantee)
        del command[at : at + (2 if guarantee in ("--size", "--remount-ro") else 1)]
    return command


@needs_sandbox
def test_the_self_test_sees_files_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sandbox.command

    def open_house(limits: Limits, **files: int) -> list[str]:
        command = whole(limits, **files)
        at = command.index("--remount-ro")
        return [*command[:at], "--bind", containment.PLANTED_IN, containment.PLANTED_IN, *command[at:]]

    monkeypatch.setattr(sandbox, "command", open_house)
    assert {"read a file outside", "write outside", "leave ['secret', 'socket', 'written'] outside"} <= set(probe())


@pytest.mark.parametrize("tool", ["bwrap", "prlimit"])
def test_without_its_tools_code_is_refused_and_the_message_says_what_to_install(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_sandbox.cache_clear()
    found = containment.shutil.which
    monkeypatch.setattr(containment.shutil, "which", lambda name: None if name == tool else found(name) or name)
    with pytest.raises(InputError, match=f"{tool} is not installed.*apt-get install"):
        verify_code("print(42)", GOLD)


@needs_sandbox
def test_without_user_namespaces_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "command", lambda limits, **files: ["bwrap", "--unshare-user", "--no-such-option"])
    with pytest.raises(InputError, match=r"bubblewrap cannot make a sandbox here: .*no-such-option.*namespaces"):
        verify_code("print(42)", GOLD)


@needs_sandbox
def test_a_sandbox_that_leaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sandbox.cache_clear()
    monkeypatch.setattr(containment, "probe", lambda: ["write outside"])
    with pytest.raises(InputError, match="does not hold here: a program could write outside"):
        verify_code("print(42)", GOLD)


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sandbox.cache_clear()
    monkeypatch.setattr(containment.platform, "machine", lambda: "riscv64")
    with pytest.raises(InputError, match="needs Linux on x86_64 or aarch64"):
        require_sandbox()
