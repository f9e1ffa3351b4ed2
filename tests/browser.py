"""A headless Chromium by its driver (w3.org/TR/webdriver2), for tests that must see a page as a reader does."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def installed() -> bool:
    """Whether Chromium and its driver are there."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window. `profile` is a folder that it may fill."""

    def __init__(self, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self._address.rpartition(":")[2]
        self._driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": logs}}
        self._session = ""
        self._session = f"/session/{self._post('/session', capabilities=wanted)['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        urllib.request.urlopen(urllib.request.Request(self._address + self._session, method="DELETE"), timeout=30)
        self._driver.terminate()
        self._driver.wait()

    def open(self, page: Path | str, width: int, height: int = 900) -> None:
        """Load a file or an address in a window of this size, and let it draw."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self._post("/url", url=page if isinstance(page, str) else page.as_uri())
        time.sleep(0.5)

    def run(self, script: str) -> Any:
        """What `return …` gives."""
        return self._post("/execute/sync", script=script, args=[])

    def command(self, name: str, **options: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", cmd=name, params=options)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """ "browser": what came to the console; "performance": events of the DevTools protocol."""
        return self._post("/se/log", type=kind)

    def screenshot(self, file: Path, top: int, height: int) -> None:
        """A strip of the whole page, `height` pixels from `top` on."""
        width = self.run("return document.documentElement.clientWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        taken = self.command("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))

    def _post(self, path: str, **content: Any) -> Any:
        request = urllib.request.Request(
            self._address + self._session + path,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        for attempt in range(100):
            try:
                return json.load(urllib.request.urlopen(request, timeout=60))["value"]
            except urllib.error.HTTPError:
                raise
            except OSError:  # the driver has not opened its port yet
                if attempt == 99 or self._session:
                    raise
                time.sleep(0.1)
        raise AssertionError
