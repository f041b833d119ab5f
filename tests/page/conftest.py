"""The page in Debian's Chromium, in front of a real gateway with stage servers of the bundled model."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.needed import find
from tests.picture_service import (
    ADMIN_KEY,
    BUNDLED,
    KEY,
    MODEL,
    PictureService,
    Stage,
    picture_service,
    several_pictures_model,
)

PATIENCE_MS = 120_000
"""For pictures, on a machine that may have other things to do."""

PICTURES = Path(os.environ["PAGE_PICTURES"]) if "PAGE_PICTURES" in os.environ else None
"""Where screenshots go; none are kept when it is unset."""

AXE = Path(__file__).with_name("axe.min.js")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PictureService]:
    folder = tmp_path_factory.mktemp("page")
    stages = {
        "encoder": Stage("encoder", BUNDLED),
        "dit": Stage("dit", BUNDLED),
        "decoder": Stage("decoder", BUNDLED),
        "spare": Stage("decoder", BUNDLED),
        "several": Stage("encoder,dit,decoder", several_pictures_model(folder, 64, 2)),
    }
    settings = {
        "DISAGFUSION_DEFAULT_MODEL": MODEL,
        "DISAGFUSION_ELASTIC_ROLES": "false",  # so that tests know who does what
        "DISAGFUSION_DEFAULT_REQUESTS_PER_MINUTE": "1000",
    }
    with picture_service(folder, stages, settings) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers lack the user namespaces of its sandbox, and pages here come from this machine alone.
        launched = playwright.chromium.launch(executable_path=find("chromium"), args=["--no-sandbox"])
        yield launched
        launched.close()


@dataclass
class Visitor:
    """One browser window, and what went wrong in it."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    """Console errors, exceptions, and requests to other hosts."""
    addresses: list[str] = field(default_factory=list)
    """Of all requests."""

    def watch(self) -> None:
        self.page.on("console", lambda told: told.type == "error" and self.complaints.append(told.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._requested)
        self.page.set_default_timeout(PATIENCE_MS)

    def _requested(self, request: Any) -> None:
        self.addresses.append(request.url)
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data") and f"{parts.scheme}://{parts.netloc}" != self.url:
            self.complaints.append(f"request to {request.url}")

    def complaint(self) -> str:
        """Take the one that must come, which may be a moment after what it is about."""
        until(lambda: self.page.evaluate("true") and self.complaints, "Chromium's line about it")
        return self.complaints.pop()

    def open(self, view: str = "create") -> Any:
        self.page.goto(f"{self.url}/#{view}")
        return self.page

    def remember(self, *selectors: str) -> None:
        """From now on, note which of them the page shows, even for a moment; a reload ends it."""
        self.page.evaluate(
            """(selectors) => {
              window.remembered = new Set();
              const look = () =>
                selectors.filter((each) => document.querySelector(each)).forEach((each) => remembered.add(each));
              new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true });
            }""",
            selectors,
        )

    def remembered(self) -> set[str]:
        """The selectors of `remember` that were met."""
        return set(self.page.evaluate("[...window.remembered]"))

    def draw(self, prompt: str, **fields: str) -> None:
        """Fill the form and wait for the picture."""
        self.page.fill("#prompt", prompt)
        for name, value in fields.items():
            self.page.fill(f"#{name}", value)
        self.page.click("#generate")
        self.page.wait_for_selector('.state[data-state="done"]')

    def picture(self, selector: str) -> Image.Image:
        """What an ``img`` shows."""
        read = """async (image) => {
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext("2d").drawImage(image, 0, 0);
          const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
          return Array.from(new Uint8Array(await blob.arrayBuffer()));
        }"""
        found = self.page.locator(selector).first.evaluate(read)
        return Image.open(io.BytesIO(bytes(found))).convert("RGB")

    def axe(self) -> list[str]:
        """Serious findings of axe-core about what is shown now."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes']][:3]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def keep_picture(self, name: str, **options: Any) -> None:
        """A screenshot for the documentation, of few colours and so of few bytes."""
        shot = self.page.screenshot(**options)
        if PICTURES is not None:
            image = Image.open(io.BytesIO(shot)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
            image.save(PICTURES / f"{name}.png", optimize=True)


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any, service: PictureService) -> Iterator[Visit]:
    """Opens windows that know their keys; at the end nothing must have gone wrong in any."""
    visitors: list[Visitor] = []
    contexts: list[Any] = []

    def open_window(keys: bool = True, **options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        if keys:
            context.add_init_script(
                f"sessionStorage.setItem('api-key', '{KEY}'); sessionStorage.setItem('admin-key', '{ADMIN_KEY}')"
            )
        visitor = Visitor(context.new_page(), service.url)
        visitor.watch()
        visitors.append(visitor)
        return visitor

    yield open_window
    for context in contexts:
        context.close()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []
    addresses = [address for visitor in visitors for address in visitor.addresses]
    assert not [address for address in addresses if KEY in address or ADMIN_KEY in address]


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE_MS / 1000:g} s"
        time.sleep(0.05)
