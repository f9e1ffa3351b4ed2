"""One MLflow run per stage: its params, figures over steps, system metrics, data digests and git commit.

Tracking must cost a stage next to nothing and must not decide whether it succeeds:

- MLflow takes seconds to import, so it lives in another process (pipeline/tracking/recorder.py), and every call takes
  milliseconds, so all of them happen in one thread beside the stage; figures wait in a buffer and go in batches.
- A server that does not answer at the start is refused at once, as a mistake in params. One that goes away later is
  waited for: figures stay in the buffer, one warning says so, and another one at the end if some were never sent.
  Tables of samples are kept likewise, but only the last few.
- The run of an attempt that did not end well is continued by the next attempt at the same work. Its id lies in the
  stage's scratch folder until the run is finished.
"""

import posixpath
import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType

from pipeline.pages import table_page
from pipeline.params import Tracking
from pipeline.tracking.recorder import RemoteRun
from pipeline.tracking.run import Description, Figure
from pipeline.tracking.store import require_answer

SEND_SECONDS = 5.0  # between two batches
BATCH = 1000  # figures in a call: the REST interface takes no more
WAITING = 200_000  # figures that wait for a server to come back; beyond that the oldest are given up
WAITING_TABLES = 20  # likewise


class Tracker:
    """The MLflow run of one attempt at a stage, open while its block runs.

    What MLflow refuses for another reason than an absent server (a store of another version, say) is raised by a later
    `log` or at the end of the block.
    """

    def __init__(self, options: Tracking, root: Path, description: Description) -> None:
        """Raises InputError where `options.uri` names a server that does not answer."""
        if options.uri is not None:
            require_answer(options.uri)
        self._buffer: deque[Figure] = deque()
        self._tables: deque[tuple[str, str]] = deque(maxlen=WAITING_TABLES)  # path among the artifacts, content
        self._lost = 0
        self._warned = False
        self._sent_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._opening = self._thread.submit(RemoteRun, options, root, description)
        self._sending = self._thread.submit(self._send)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Note the figures of a step."""
        now = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            plain = re.fullmatch(r"[\w./: -]+", name, re.ASCII) and posixpath.normpath(f"/{name}") == f"/{name}"
            assert plain, f"MLflow takes no metric named {name!r}"
            self._buffer.append((name, float(value), now, step))
        self._send_now_and_then()

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, str | float]]) -> None:
        """Keep a table as a page among the run's artifacts: `<name>/step-<step>.html`."""
        self._tables.append((f"{name}/step-{step:06}.html", table_page(f"{name}: step {step}", rows)))
        self._send_now_and_then()

    def _send_now_and_then(self) -> None:
        if self._sending.done() and time.monotonic() - self._sent_at >= SEND_SECONDS:
            self._sending.result()
            self._sent_at = time.monotonic()
            self._sending = self._thread.submit(self._send)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until the run is open."""
        return self._opening.result().id

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, SystemExit) else "FAILED"
        closing = self._thread.submit(self._close, status)
        self._thread.shutdown()
        if error is None:  # else the stage's own error is the one to show
            closing.result()

    def _send(self) -> None:
        """In the thread: send what waits, as far as the server takes it."""
        run = self._opening.result()
        try:
            while batch := list(islice(self._buffer, BATCH)):
                run.send(batch)
                for _ in batch:
                    self._buffer.popleft()
            for path, content in list(self._tables):
                run.keep(path, content)
                with suppress(ValueError):  # it was the oldest of too many, and gave way while it was sent
                    self._tables.remove((path, content))
        except (OSError, EOFError) as error:  # EOFError: the recorder has gone
            self._warn(f"figures wait, because the tracking server does not take them: {error}")
            while len(self._buffer) > WAITING:
                self._buffer.popleft()
                self._lost += 1

    def _close(self, status: str) -> None:
        """In the thread: send the rest and end the run."""
        self._send()
        lost = self._lost + len(self._buffer)
        try:
            self._opening.result().close(status)
        except (OSError, EOFError) as error:
            self._warn(f"the run could not be closed: {error}")
        if lost:
            print(f"tracking: {lost} figures were never sent", file=sys.stderr)
        if self._tables:
            print(f"tracking: {len(self._tables)} tables were never sent", file=sys.stderr)

    def _warn(self, message: str) -> None:
        if not self._warned:
            print(f"tracking: {message}", file=sys.stderr)
        self._warned = True
