"""The pictures of the web page in docs/images, from a bundle.

python scripts/page_pictures.py demo-bundle docs/images
"""

from __future__ import annotations

import io
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from personae import Bundle
from personae.serving.app import create_app
from personae.serving.directory import model_of
from personae.serving.local import LocalBackend
from personae.serving.store import PersonaStore


@contextmanager
def served(bundle: Bundle) -> Iterator[str]:
    """URL of a server of the bundle."""
    with tempfile.TemporaryDirectory() as folder:
        backend = LocalBackend(bundle.steerer) if "steerer" in bundle else None
        app = create_app(bundle, PersonaStore(f"sqlite:///{folder}/personas.sqlite", model_of(bundle)), backend)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def card(page: Page) -> None:
    """Where people are, and what sets a cohort apart."""
    page.wait_for_selector("#panel-card .plot .main-svg >> nth=1")


def ask(page: Page) -> None:
    """Two cohorts and somebody answer a question of the survey."""
    page.locator("#found [data-id=cohort-0]").click()
    page.get_by_role("button", name="Add to conversation").click()
    page.click("#tab-ask")
    page.locator("#known").select_option("natenvir")
    page.click("#panel-ask button[type=submit]")
    page.wait_for_selector(".result .plot .main-svg", timeout=300_000)


def me(page: Page) -> None:
    """Where eight answers put somebody."""
    page.click("#tab-me")
    page.click("#me-start")
    for i in range(6):
        page.wait_for_selector(f"progress[value='{i}']")
        page.locator("fieldset button").nth(i % 2).click()
    page.wait_for_selector("progress[value='6']")


def chat(page: Page) -> None:
    """Two cohorts reply to the same message."""
    page.click("#tab-chat")
    page.fill("#message", "Let's talk about the environment. What is your view?")
    page.press("#message", "Enter")
    page.wait_for_selector("#send:not(:disabled)", timeout=300_000)


PICTURES = [  # name, what it shows, width, height, colours
    ("page-card", card, 1280, 860, "light"),
    ("page-ask-dark", ask, 1280, 1040, "dark"),
    ("page-chat", chat, 1280, 860, "light"),
    ("page-me-390", me, 390, 860, "light"),
]


def main(bundle: Bundle, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with served(bundle) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, show, width, height, scheme in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url)
            page.wait_for_selector("html[data-ready]")
            show(page)
            page.mouse.move(0, 0)
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(1500)  # what moves comes to rest
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.convert("RGB").quantize(256).save(folder / f"{name}.png", optimize=True)  # a third of the bytes
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Bundle.open(sys.argv[1]), Path(sys.argv[2]))
