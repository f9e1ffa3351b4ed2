"""Requests to the kernel and signals."""

import gc
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.process import importing
from tests.processes import unless_gone

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


@linux_only
def test_a_process_dies_with_its_parent() -> None:
    child = (
        "import time\nfrom pipeline.process import die_with_parent\n"
        "die_with_parent()\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\nprint(child.pid, flush=True)\nchild.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while unless_gone(lambda: psutil.Process(pid).status(), psutil.STATUS_ZOMBIE) != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unwinds_the_stack_and_gives_its_exit_status(number: signal.Signals) -> None:
    program = (
        "import time\nfrom pipeline.process import exit_on_signals\nexit_on_signals()\n"
        "try:\n    print('ready', flush=True); time.sleep(60)\n"
        "finally:\n    print('cleaning', flush=True); time.sleep(0.3); print('cleaned up', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    assert process.stdout.readline() == "cleaning\n"
    os.kill(process.pid, signal.SIGTERM)  # somebody is impatient
    assert process.stdout.read() == "cleaned up\n"
    assert process.wait() == 128 + number


def test_a_rank_ends_with_what_it_has_said_and_without_a_teardown() -> None:
    program = "import atexit, os; from pipeline.process import end_rank; atexit.register(os.abort)"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print('said', end=''); end_rank(3)"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (3, "said")


def test_while_much_is_imported_nothing_is_collected_and_afterwards_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen, "nothing was imported"
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with importing():
        import this  # noqa: F401
    assert gc.get_freeze_count() > frozen
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
