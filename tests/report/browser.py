"""A real browser without a window, asked over its own protocol: what a page looks like at a size, and what it tried to load."""

import asyncio
import base64
import io
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE = 60  # seconds for any one thing
_MEASURE = """(() => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.x + scrollX, r.y + scrollY, r.width, r.height]; };
  return {
    width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    boxes: [...document.querySelectorAll(SELECTOR)].map(e => [e.querySelector('strong')?.textContent, box(e)]),
  };
})()"""


def found() -> str | None:
    """The program, where one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class View:
    """A page as it looks."""

    pixels: np.ndarray
    """uint8 [height, width, 3] of the whole page."""
    width: int
    """What the content needs; more than the screen's means pushing it sideways."""
    boxes: dict[str, tuple[float, float, float, float]]
    """x, y, width and height of each chart by its title."""
    requests: list[str] = field(default_factory=list)
    """Every address that was asked for, the page's own too."""
    stopped: list[str] = field(default_factory=list)
    """Those of them that the page's policy stopped before anything was sent."""
    complaints: list[str] = field(default_factory=list)
    """What the browser had to say."""

    def inside(self, title: str) -> np.ndarray:
        """The pixels of one chart."""
        x, y, width, height = (round(each) for each in self.boxes[title])
        return self.pixels[y : y + height, x : x + width]

    def blank(self, title: str) -> bool:
        """Whether a chart shows no curve and no bar: inside its axes hardly a pixel has a colour, as text and rules have none."""
        chart = self.inside(title)
        plot = chart[len(chart) // 3 : -20, 50:-12].astype(int)
        colours = plot.max(axis=-1) - plot.min(axis=-1)
        return bool((colours > 60).mean() < 0.002 or plot.std() < 3)

    def save(self, path: Path) -> None:
        """As a PNG."""
        Image.fromarray(self.pixels).save(path)


def look(page: Path, width: int, height: int, dark: bool = False, selector: str = ".chart") -> View:
    """Open a page at a screen size."""
    return asyncio.run(_look(page, width, height, dark, selector))


async def _look(page: Path, width: int, height: int, dark: bool, selector: str) -> View:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # its helpers write a little longer
        browser = await asyncio.create_subprocess_exec(
            str(found()), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = await asyncio.wait_for(_port(Path(profile)), _PATIENCE)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tab = next(each for each in await answer.json() if each["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    return await asyncio.wait_for(_seen(_Tab(socket), page, width, height, dark, selector), _PATIENCE)
        finally:
            browser.terminate()
            await browser.wait()


async def _port(profile: Path) -> int:
    while True:
        said = profile / "DevToolsActivePort"
        if said.exists() and said.read_text().strip():
            return int(said.read_text().split()[0])
        await asyncio.sleep(0.1)


class _Tab:
    """One page of the browser: commands out, answers and events in."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    async def until(self, method: str) -> None:
        """Wait for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(await self._socket.receive_json())

    def output(self, method: str) -> list[dict[str, Any]]:
        """What the events of a kind say."""
        return [event["params"] for event in self.events if event.get("method") == method]


async def _seen(tab: _Tab, page: Path, width: int, height: int, dark: bool, selector: str) -> View:
    for domain in ("Page", "Network", "Log", "Runtime"):
        await tab.ask(f"{domain}.enable")
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    await tab.ask("Emulation.setDeviceMetricsOverride", **screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await tab.ask("Emulation.setEmulatedMedia", features=[scheme])
    await tab.ask("Page.navigate", url=page.absolute().as_uri())
    await tab.until("Page.loadEventFired")
    expression = _MEASURE.replace("SELECTOR", repr(selector))
    measured = (await tab.ask("Runtime.evaluate", expression=expression, returnByValue=True))["result"]["value"]
    clip = {"x": 0, "y": 0, "width": width, "height": measured["height"], "scale": 1}
    shot = await tab.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))
    complaints = [each["entry"]["text"] for each in tab.output("Log.entryAdded")]
    asked = {each["requestId"]: each["request"]["url"] for each in tab.output("Network.requestWillBeSent")}
    failed = tab.output("Network.loadingFailed")
    stopped = [asked[each["requestId"]] for each in failed if each.get("blockedReason") == "csp"]
    return View(pixels, measured["width"], dict(measured["boxes"]), list(asked.values()), stopped, complaints)
