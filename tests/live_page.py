"""Pages of a running server in Chromium, driven by its DevTools protocol over two pipes."""

import base64
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tests.browser import CHROMIUM

# Chromium reads commands from descriptor 3 and writes to 4.
LAUNCH = """
import os, sys
read, write, *browser = sys.argv[1:]
os.dup2(int(read), 3)
os.dup2(int(write), 4)
os.execv(browser[0], browser)
"""


class LivePage:
    """One page. Commands and answers are JSON, a zero byte between them."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._session: dict[str, str] = {}
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        attached = self._do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def open(self, url: str) -> None:
        self._do("Page.navigate", url=url)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Shows pages at this size, a telephone's too, in light or dark."""
        size = {"width": width, "height": height}
        self._do("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._do("Emulation.setEmulatedMedia", features=[scheme])

    def when(self, script: str, patience_s: float = 240) -> Any:
        """What an expression gives, as soon as that is neither false nor empty."""
        give_up = time.monotonic() + patience_s
        while True:
            done = self._do("Runtime.evaluate", expression=script, returnByValue=True)
            if value := done["result"].get("value"):
                return value
            assert time.monotonic() < give_up, self.text()
            time.sleep(0.3)

    def text(self) -> str:
        """All that is there to read."""
        done = self._do("Runtime.evaluate", expression="document.body.innerText")
        return str(done["result"].get("value"))

    def picture(self) -> bytes:
        """What is to be seen, as a PNG."""
        return base64.b64decode(self._do("Page.captureScreenshot")["data"])

    def _do(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, **self._session}
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def _read(self) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\0"):
            byte = self._answers.read(1)
            assert byte, "the browser is gone"
            text += byte
        found: dict[str, Any] = json.loads(text[:-1])
        return found


@contextmanager
def live_page(folder: Path, width: int = 1400, height: int = 900) -> Iterator[LivePage]:
    """A browser with one empty page and a new profile."""
    assert CHROMIUM is not None
    pipes = [*os.pipe(), *os.pipe()]
    read, commands, answers, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipes)
    for end in pipes:
        os.close(end)
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--window-size={width},{height}",
    ]  # fmt: skip
    with (folder / "browser.log").open("wb") as log:
        browser = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(read), str(write), CHROMIUM, *options],
            pass_fds=(read, write),
            stdout=log,
            stderr=log,
        )
    os.close(read)
    os.close(write)
    with os.fdopen(commands, "wb") as to_it, os.fdopen(answers, "rb") as from_it:
        try:
            yield LivePage(to_it, from_it)
        finally:
            browser.terminate()
            browser.wait(120)
