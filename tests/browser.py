"""A headless Chromium for tests, driven through chromedriver with the W3C WebDriver protocol and nothing else."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
]  # fmt: skip


def missing() -> str | None:
    """Why no browser can be started here, or None."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(absent)} on the path" if absent else None


class Browser:
    """One page in a headless Chromium."""

    def __init__(self, address: str):
        self._address = address
        options = {"binary": shutil.which("chromium"), "args": _FLAGS}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def _in_session(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, f"/session/{self._session}{path}", body)

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Loads a file in a viewport of that size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._in_session("POST", "/goog/cdp/execute", command)
        self._in_session("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """Runs the body of an async function; what it returns."""
        body = f"const done = arguments[0]; (async () => {{ {script} }})().then(done, error => done(String(error)));"
        return self._in_session("POST", "/execute/async", {"script": body, "args": []})

    def console(self) -> list[str]:
        """What the page wrote to the console, errors included."""
        return [entry["message"] for entry in self._in_session("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """The whole page, not the viewport alone."""
        taken = self._in_session(
            "POST",
            "/goog/cdp/execute",
            {"cmd": "Page.captureScreenshot", "params": {"format": "png", "captureBeyondViewport": True}},
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def quit(self) -> None:
        """Ends the browser."""
        self._in_session("DELETE", "")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Starts chromedriver and a browser, and ends both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The browser leaves its profile behind where TMPDIR says.
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": scratch.name},
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        page = Browser(f"http://127.0.0.1:{port}")
        try:
            yield page
        finally:
            page.quit()
    finally:
        driver.terminate()
        driver.wait(10)
        scratch.cleanup()
