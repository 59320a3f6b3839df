# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium, asked over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-port=0",
    "--hide-scrollbars",
)


def chromium() -> str | None:
    """The browser's program, None where there is none."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


class Page:
    """One open page."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads((await self._socket.receive(timeout=240)).data)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def value(self, expression: str) -> Any:
        """What JavaScript `expression` is in the page."""
        result = (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"]
        return result.get("value")

    async def until(self, expression: str, seconds: float = 600) -> Any:
        """Wait until `expression` is true in the page."""
        deadline = time.monotonic() + seconds
        while not (value := await self.value(expression)):
            if time.monotonic() > deadline:
                shown = await self.value("document.body.innerText")
                raise AssertionError(f"not so within {seconds} s: {expression}; the page shows {shown}")
            await asyncio.sleep(0.1)
        return value

    async def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"]))


@asynccontextmanager
async def opened(url: str, profile: Path, size: tuple[int, int] = (1440, 1090)) -> AsyncIterator[Page]:
    """`url` in a new browser with a profile folder of its own."""
    import aiohttp

    program = chromium()
    assert program is not None
    words = [program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
    browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (told := profile / "DevToolsActivePort").exists() or not told.read_text():
            assert browser.poll() is None, "the browser ended before it could be asked"
            await asyncio.sleep(0.05)
        port = int(told.read_text().split()[0])
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                target = next(item for item in await answer.json(content_type=None) if item["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                while "errorText" in await page.call("Page.navigate", url=url):  # a busy browser gives a page up
                    await asyncio.sleep(1)
                yield page
    finally:
        browser.terminate()
        browser.wait(240)
