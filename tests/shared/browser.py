"""A real browser without a screen, by the Chrome DevTools Protocol over a pipe; needs chromium-headless-shell."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

# Debian's packages, and Google's own.
_NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
_ANSWERS_WITHIN_S = 60.0


class Browser:
    """
    One page of a browser.

    Source: Chrome DevTools Protocol; `--remote-debugging-pipe` reads JSON from file descriptor 3 and writes it to 4,
    each message with a NUL behind it.
    """

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, _NAMES)), None)
        assert program is not None, "install chromium-headless-shell (make services does)"
        self._profile = tempfile.TemporaryDirectory(prefix="plungepool-browser-", ignore_cleanup_errors=True)
        inside_read, self._write = os.pipe()
        self._read, inside_write = os.pipe()
        # --no-sandbox: the tests may run as root, where Chromium has none; what it opens is the tests' own.
        arguments = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec 3<&{inside_read} 4>&{inside_write}; exec "$@"', "browser", *arguments],
            pass_fds=(inside_read, inside_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(inside_read)
        os.close(inside_write)
        self._number, self._heard, self._session = 0, b"", ""
        #: What the page's console, its log and its exceptions have said.
        self.complaints: list[str] = []
        self._own: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        target = next(one for one in self._ask("Target.getTargets")["targetInfos"] if one["type"] == "page")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # it has children, which write to its profile
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def open(self, page: Path | str, *, width: int, scheme: str) -> None:
        """
        Open a file, or an address of this machine's, in a window so wide, by a reader who prefers `light` or `dark`.
        """
        self.complaints.clear()
        address = page if isinstance(page, str) else page.resolve().as_uri()
        # What the page may ask for: files, or what the same server has.
        self._own = ("data:", "/".join(address.split("/")[:3]) + "/")
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._ask("Page.navigate", url=address)
        deadline = time.monotonic() + _ANSWERS_WITHIN_S
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """Return what JavaScript says, which JSON must hold."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, height: int | None = None) -> None:
        """Write the whole page as PNG, or its beginning, so high."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._write, json.dumps(request).encode() + b"\0")
        while True:
            message = self._hear()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._heard:
            assert select.select([self._read], [], [], _ANSWERS_WITHIN_S)[0], "the browser does not answer"
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has ended"
            self._heard += piece
        one, _, self._heard = self._heard.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"].get("text")))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(self._own):
            self.complaints.append(f"asked for {parameters['request']['url']}")
