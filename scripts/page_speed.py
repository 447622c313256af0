"""How soon the web page can be used with 10,000 people on its map: milliseconds from opening it.

python scripts/page_speed.py
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from statistics import median

import numpy as np
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from personae import Bundle, Cohorts, OpinionModel
from personae.data.survey import Question, Survey
from personae.serving.app import create_app
from personae.serving.directory import model_of
from personae.serving.store import PersonaStore

PEOPLE, QUESTIONS, OPENINGS = 10_000, 40, 7
OUTERMOST = """import('/page/main.js').then(({map}) => {
  const i = map.x.indexOf(Math.max(...map.x));
  return map.at({x: map.x[i], y: map.y[i]});
})"""
WHEN = "performance.getEntriesByName('interactive')[0].startTime"


def made_up(folder: str) -> Bundle:
    """People in four camps who answer everything."""
    draw = np.random.default_rng(0)
    camp = draw.normal(size=(4, QUESTIONS))[draw.integers(4, size=PEOPLE)]
    codes = np.clip(np.round(2 + camp + draw.normal(size=camp.shape)), 0, 4).astype(int)
    options = ("not at all", "little", "somewhat", "much", "very much")
    questions = [Question(f"q{j}", f"How much do you like thing {j}?", options) for j in range(QUESTIONS)]
    person, question = np.divmod(np.arange(codes.size), QUESTIONS)
    survey = Survey(questions, [f"person-{i:05d}" for i in range(PEOPLE)], person, question, codes.ravel())
    people = OpinionModel(n_components=4).fit(survey)
    Bundle.write(f"{folder}/made-up", people, Cohorts(k=4).fit(people, survey))
    return Bundle.open(f"{folder}/made-up")


def opening(browser: Browser, url: str) -> tuple[float, float]:
    """Milliseconds until the page can be used, and until a click on a person has opened their card."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})  # with an empty cache
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    ready = page.evaluate(WHEN)
    x, y = page.evaluate(OUTERMOST)
    page.click("#map canvas", position={"x": x, "y": y}, force=True)
    page.wait_for_selector("#panel-card:has(h2:text('person-')) .facts")
    clicked = page.evaluate("performance.now()")
    page.close()
    return ready, clicked


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = made_up(folder)
        app = create_app(bundle, PersonaStore(f"sqlite:///{folder}/personas.sqlite", model_of(bundle)))
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.05)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            times = [opening(browser, f"http://127.0.0.1:{listening.getsockname()[1]}/") for _ in range(OPENINGS)]
            browser.close()
        server.should_exit = True
        thread.join()
    ready, clicked = zip(*times, strict=True)
    print(f"{PEOPLE:,} people, {OPENINGS} openings: it can be used after {median(ready):.0f} ms ", end="")
    print(f"({min(ready):.0f} to {max(ready):.0f}); a click has opened a card after {median(clicked):.0f} ms")


if __name__ == "__main__":
    main()
