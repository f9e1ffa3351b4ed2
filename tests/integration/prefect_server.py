"""A Prefect server of its own for a test module: on loopback, with its database in a temporary folder."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from flows.server import start

START_SECONDS = 120.0  # on a busy machine


class PrefectServer:
    """`environment` is for whoever is to use it; `database` is copied."""

    def __init__(self, home: Path, database: Path) -> None:
        shutil.copy(database, home)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            self.environment = {
                **os.environ,
                "PREFECT_HOME": str(home),
                "PREFECT_API_URL": self.url,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "1",
                "DO_NOT_TRACK": "1",
            }
            self._log = (home / "server.log").open("w+")
            self._process = start(listening, self.environment, self._log)
        self._api = httpx.Client(base_url=self.url, timeout=START_SECONDS)
        self.get("/health")

    def stop(self) -> None:
        self._api.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def get(self, path: str) -> Any:
        return self._api.get(path).raise_for_status().json()

    def post(self, path: str, **content: Any) -> Any:
        answer = self._api.post(path, json=content)
        while answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # others write: Prefect's client asks again, too
            time.sleep(0.2)
            answer = self._api.post(path, json=content)
        return answer.raise_for_status().json()

    def run(self, *arguments: str, cwd: Path, variables: Mapping[str, str] | None = None) -> str:
        """What `python -m ARGUMENTS` prints; it has to succeed."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env={**self.environment, "PYTHONPATH": str(cwd), **(variables or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def state(self, flow_run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{flow_run}")["state"]

    def wait(self, until: Callable[[], object], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < deadline, self._said()
            time.sleep(0.2)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]
