"""Nothing of a supervised command is left, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.supervise import TIMED_OUT, run

# A child in a session of its own whose parent is gone, and which does not listen to SIGTERM.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('stubborn', 'w').close(); time.sleep(99)"
)
ORPHAN_MAKER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"
TREE = (
    f"import subprocess, sys, os, time; subprocess.run([sys.executable, '-c', {ORPHAN_MAKER!r}])\n"
    "while not os.path.exists('stubborn'): time.sleep(0.01)\n"
)


def supervised(program: str, folder: Path, *, timeout: float | None = None) -> int:
    return run([sys.executable, "-c", program], cwd=folder, env=os.environ, timeout=timeout, grace=0.3)


def left_in(folder: Path) -> list[psutil.Process]:
    """Living processes whose working directory is `folder`."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def assert_nothing_left(folder: Path, within: float = 0.0) -> None:
    deadline = time.monotonic() + within
    while (left := left_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("status", [0, 1, 3, 77])
def test_returns_the_exit_status(tmp_path: Path, status: int) -> None:
    assert supervised(f"raise SystemExit({status})", tmp_path) == status


def test_names_a_signal_as_a_shell_does(tmp_path: Path) -> None:
    assert supervised("import os; os.kill(os.getpid(), 9)", tmp_path) == 128 + 9


def test_stops_at_the_timeout(tmp_path: Path) -> None:
    started = time.monotonic()
    assert supervised("import time; time.sleep(99)", tmp_path, timeout=0.5) == TIMED_OUT
    assert time.monotonic() - started < 20
    assert_nothing_left(tmp_path)


def test_a_stubborn_orphan_does_not_outlive_the_command(tmp_path: Path) -> None:
    assert supervised(TREE, tmp_path) == 0
    assert (tmp_path / "stubborn").exists()
    assert_nothing_left(tmp_path)


def test_a_child_that_listens_may_clean_up(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "try: time.sleep(99)\nfinally: open('cleaned', 'w').close()"
    )
    assert supervised(program, tmp_path, timeout=1) == TIMED_OUT
    assert (tmp_path / "cleaned").exists()


def start_caller(folder: Path) -> subprocess.Popen[bytes]:
    """A process that supervises a tree which never ends by itself."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom flows.supervise import run\n"
        "from pipeline.process import exit_on_signals\nexit_on_signals()\n"
        f"command = [sys.executable, '-c', {TREE + 'time.sleep(99)'!r}]\n"
        f"run(command, cwd=Path({str(folder)!r}), env=os.environ, grace=0.3)"
    )
    caller = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 30
    while not (folder / "stubborn").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return caller


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_caller_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    caller = start_caller(tmp_path)
    caller.send_signal(number)
    assert caller.wait(timeout=30) == 128 + number
    assert_nothing_left(tmp_path)


def test_a_killed_caller_leaves_nothing(tmp_path: Path) -> None:
    caller = start_caller(tmp_path)
    caller.kill()
    caller.wait()
    assert_nothing_left(tmp_path, within=30)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to end children with their parent")
def test_a_killed_supervisor_takes_the_command_with_it(tmp_path: Path) -> None:
    caller = start_caller(tmp_path)
    supervisor = next(child for child in psutil.Process(caller.pid).children() if "flows.supervise" in child.cmdline())
    command = [child for child in supervisor.children() if child.cmdline()[2] != STUBBORN]
    supervisor.kill()
    assert len(command) == 1
    assert psutil.wait_procs(command, timeout=10)[1] == []
    caller.wait(timeout=10)
    for process in left_in(tmp_path):  # the stubborn orphan is beyond the reach of a supervisor that is no more
        process.kill()


def test_whose_reader_has_died_speaks_into_the_void(tmp_path: Path) -> None:
    child = (
        "import os, sys, time\nfrom flows.supervise import silent_without_parent\nparent = os.getppid()\n"
        "try:\n with silent_without_parent():\n"
        "  open('begun', 'w').close()\n  while os.getppid() == parent: time.sleep(0.01)\n  raise KeyError\n"
        "except KeyError: print('x', flush=True); print('x', flush=True, file=sys.stderr); open('told', 'w').close()"
    )
    reader = (
        "import os, subprocess, sys, time\nfrom pathlib import Path\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)\n"
        "while not Path('begun').exists(): time.sleep(0.01)\nos.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", reader], cwd=tmp_path, env=environment, timeout=60)
    deadline = time.monotonic() + 30
    while not (tmp_path / "told").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
