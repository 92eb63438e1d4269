"""Chromium without a window, for tests that look at pages as readers do."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the PATH"
)

# Runs before the page's own scripts, so that it hears of their errors.
LISTEN = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
const { error } = console;
console.error = (...said) => { problems.push(said.join(" ")); error(...said); };
</script>"""
# Waits until charts are drawn, then leaves what a test asks for in the page.
ASK = """<script>
addEventListener("load", () => setTimeout(() => {
  const answer = { problems: window.problems, ...(() => { %s })() };
  document.documentElement.dataset.answer = JSON.stringify(answer);
}, %d));
</script>"""


def ask(
    page: Path, script: str, *, width: int = 1200, dark: bool = False, wait_ms: int = 3000
) -> dict[str, Any]:
    """Opens a page with no network at all, and gives what `script` returns, an object.

    What went wrong in the page is under `problems`.
    """
    assert CHROMIUM is not None
    text = page.read_text()
    asking = page.with_name("asking.html")
    text = text.replace("<head>", f"<head>{LISTEN}", 1)
    body, end, after = text.rpartition("</body>")  # the last, as scripts may name it too
    asking.write_text(body + ASK % (script, wait_ms) + end + after)
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={width},900", "--virtual-time-budget=30000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom", asking.resolve().as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    answer = re.search(r'data-answer="([^"]*)"', dom)
    assert answer is not None, dom[-2000:]
    found: dict[str, Any] = json.loads(unescape(answer[1]))
    return found
