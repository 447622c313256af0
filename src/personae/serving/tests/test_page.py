from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from personae.serving.guard import Rules
from personae.serving.keys import Keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; run: apt-get install chromium"),
]
OWN = "Should trains be free?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and what it should not have done."""

    def __init__(self, page: Page) -> None:
        self.page, self.complaints, self.forgiven, self.asked = page, [], [], []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in self.forgiven):
            self.complaints.append(message.text)

    def forgive(self, words: str) -> None:
        """What the browser itself writes of a reply that is an error, also of one that is still on its way."""
        assert any(words in c for c in self.complaints)
        self.forgiven.append(words)
        self.complaints = [c for c in self.complaints if words not in c]

    def panel(self, name: str):
        self.page.click(f"#tab-{name}")
        return self.page.locator(f"#panel-{name}")

    def click_person(self, id: str) -> None:
        x, y = self.page.evaluate("id => import('/page/main.js').then(({map}) => map.pixelOf(id))", id)
        self.page.locator("#map canvas").click(position={"x": x, "y": y}, force=True)


@pytest.fixture
def visit(browser, live) -> Iterator[Callable[..., Visit]]:
    """Opens the page of a server: ``visit(rules, width=390)``; in the end nothing must have gone wrong on it."""
    visits: list[tuple[Visit, str]] = []

    def visit(rules: Rules | None = None, width: int = 1280, scheme: str = "light", wait: bool = True, **how) -> Visit:
        url = live(rules, **how)
        page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme, reduced_motion="reduce")
        page.set_default_timeout(60_000)
        visits.append((Visit(page), url))
        page.goto(url)
        if wait:
            page.wait_for_selector("html[data-ready]")
        return visits[-1][0]

    expect.set_options(timeout=60_000)
    yield visit
    for visited, url in visits:
        visited.page.close()
        assert visited.complaints == []
        assert [u for u in visited.asked if not u.startswith((f"{url}/", "data:", "blob:"))] == []


def percent(share: float) -> str:
    return f"{math.floor(100 * share + 0.5)}\xa0%"


def server_of(visited: Visit) -> httpx.Client:
    return httpx.Client(base_url=visited.page.url)


# the map and the cards -------------------------------------------------------------------------------------------
def test_a_click_on_the_map_opens_the_card_of_a_person_and_of_a_cohort(visit):
    visited = visit()
    page, card = visited.page, visited.page.locator("#panel-card")
    drawn = server_of(visited).get("v1/map").json()
    alone = max(range(600), key=lambda i: drawn["people"]["x"][i])  # nobody is further to the right
    visited.click_person(drawn["people"]["id"][alone])
    expect(card.locator("h2")).to_have_text(drawn["people"]["id"][alone])
    expect(card).to_contain_text("not what they said or would sign")

    largest = max(drawn["cohorts"], key=lambda group: group["people"])
    page.locator(f".mark[data-id={largest['id']}]").click()
    expect(card.locator("h2")).to_have_text(largest["id"])
    expect(card).to_contain_text(f"{largest['people']} people")
    expect(card.locator(".plot .main-svg").first).to_be_visible()
    cell = server_of(visited).get("v1/cohorts").json()["data"][int(largest["id"][-1])]["answers"][0]
    card.locator("summary").first.click()
    shown = card.locator("tbody tr").first.locator("td").all_text_contents()
    assert shown[1:3] == [percent(cell["share"]), f"{percent(cell['low'])} – {percent(cell['high'])}"]
    assert shown[4] == f"{cell['count']} of {cell['n']}"


def test_cells_of_few_people_say_so(visit):
    visited = visit()
    cohorts = server_of(visited).get("v1/cohorts").json()["data"]
    cells = {c["id"]: server_of(visited).get(f"v1/cohorts/{c['id']}").json()["traits"] for c in cohorts}
    name, few = next((n, sum(c["share"] is None for c in found)) for n, found in cells.items())
    assert few
    visited.page.locator(f"#found [data-id={name}]").click()
    visited.page.get_by_text("All answers and traits").click()
    table = visited.page.get_by_role("table", name=f"Traits of {name}")
    expect(table.get_by_text("fewer than 10", exact=True)).to_have_count(few)


def test_groups_of_a_trait_stand_on_the_map(visit):
    visited = visit()
    visited.page.select_option("#show", "sex")
    expect(visited.page.locator(".mark")).to_have_text(["female", "male"])
    visited.page.get_by_role("button", name="sex: male").click()
    expect(visited.page.locator("#panel-card h2")).to_have_text("sex: male")


def test_whoever_is_not_drawn_is_found_by_the_exact_name(visit):
    visited = visit()
    page = visited.page
    for name in ("0.5*cohort-0+0.5*r0007", "r9999"):
        page.fill("#find", name)
        page.press("#find", "Enter")
        expect(page.locator("#panel-card h2")).to_have_text(name)
    expect(page.locator("#panel-card [role=alert]")).to_contain_text("r9999")
    visited.forgive("404")


# asking and talking ----------------------------------------------------------------------------------------------
def test_a_question_with_options_becomes_bars_beside_everybodys(visit):
    visited = visit()
    panel = visited.panel("ask")
    panel.get_by_label("Question", exact=True).fill("<i>May</i> <img src=x> be free?")
    panel.get_by_label("Options").fill("<b>yes</b>\nno\nnever")
    panel.get_by_role("button", name="Ask").click()
    bars = panel.locator(".result .plot")
    expect(bars.locator(".bars .point")).to_have_count(9)  # two cohorts and everybody, three options
    expect(bars.locator(".annotation-text").first).to_have_text("<b>yes</b>")  # words, and no markup
    expect(panel.locator(".result h3")).to_have_text("<i>May</i> <img src=x> be free?")
    assert panel.locator(".result :is(img, i, b)").count() == 0
    panel.get_by_text("as a table").click()
    assert panel.locator("tbody tr").nth(1).locator("td").all_text_contents() == ["no", *[percent(1 / 3)] * 3]


def test_a_question_of_the_survey_shows_what_people_really_answered(visit):
    visited = visit()
    asked = server_of(visited).get("v1/questions").json()["data"][3]
    panel = visited.panel("ask")
    panel.locator("#known").select_option(asked["id"])
    panel.get_by_label("Answered by").select_option("opinion model")
    panel.get_by_role("button", name="Ask").click()
    panel.get_by_text("as a table").click()
    everybody = [row.locator("td").last.text_content() for row in panel.locator("tbody tr").all()]
    assert everybody == [percent(share) for share in asked["population"]]
    expect(panel.locator(".result")).to_contain_text("Predictions of the opinion model")


def test_three_reply_to_the_same_message_word_by_word_until_somebody_stops_them(visit, echo):
    visited, echo.pause = visit(), 0.2
    visited.page.locator("#found [data-id=everybody]").click()
    visited.page.get_by_role("button", name="Add to conversation").click()
    panel = visited.panel("chat")
    panel.get_by_label("Message").fill("one two three " + "four " * 200)
    panel.get_by_label("Message").press("Enter")
    replies = panel.locator(".turn.assistant")
    expect(replies).to_have_count(3)
    for i in range(3):
        expect(replies.nth(i)).to_contain_text("one two")  # while it is being made
    expect(panel.get_by_role("button", name="Send to all")).to_be_disabled()
    panel.get_by_role("button", name="Stop").click()
    expect(replies.first).to_contain_text("(stopped)")
    assert "four " * 150 not in replies.first.text_content()

    echo.pause = 0.0
    panel.get_by_label("Message").fill("and now?")
    panel.get_by_role("button", name="Send to all").click()
    expect(replies.nth(1)).to_have_text("and now?")  # the second of each column
    assert [m["role"] for m in echo.asked[-1][0]] == ["user", "assistant", "user"]
    assert {persona.name for _, persona, _ in echo.asked} >= {"everybody"}


def test_a_question_without_options_is_answered_in_words(visit):
    visited = visit()
    panel = visited.panel("ask")
    panel.get_by_label("Question", exact=True).fill(OWN)
    panel.get_by_role("button", name="Ask").click()
    expect(visited.page.locator("#panel-chat .turn.assistant").first).to_have_text(OWN)


def test_without_a_language_model_nobody_talks_but_the_survey_can_be_asked(visit):
    visited = visit(backend=None)
    expect(visited.panel("chat")).to_contain_text("personae steer")
    panel = visited.panel("ask")
    expect(panel.get_by_label("Question", exact=True)).not_to_be_editable()
    panel.locator("#known").select_option(index=1)
    panel.get_by_role("button", name="Ask").click()
    expect(panel.locator(".result .plot .bars .point")).to_have_count(9)


# blends and oneself ----------------------------------------------------------------------------------------------
def test_a_blend_lies_between_two(visit, echo):
    visited = visit()
    drawn = {group["id"]: group for group in server_of(visited).get("v1/map").json()["cohorts"]}
    panel, page = visited.panel("blend"), visited.page
    for id in ("cohort-0", "cohort-1"):
        page.locator(f".mark[data-id={id}]").click()
    a, b = (drawn[name] for name in panel.locator(".end").all_text_contents())
    panel.get_by_role("slider").fill("25")
    for axis in "xy":
        at = float(page.locator(".you").get_attribute(f"data-{axis}"))
        assert at == pytest.approx(0.75 * a[axis] + 0.25 * b[axis], abs=1e-6)
    panel.get_by_role("button", name="Add to conversation").click()
    chat = visited.panel("chat")
    chat.get_by_label("Message").fill(OWN)
    chat.get_by_role("button", name="Send to all").click()
    expect(chat.locator(".turn.assistant")).to_have_text([OWN] * 3)
    weights = [persona.origin.get("weights") or persona.origin for _, persona, _ in echo.asked]
    assert any("0.75" in str(w) and "0.25" in str(w) for w in weights)


def test_make_me_moves_the_point_talks_and_is_deleted(visit, store):
    visited = visit()
    page, panel = visited.page, visited.panel("me")
    panel.get_by_role("button", name="Start").click()
    places, widths = [], []
    for i in range(8):
        expect(panel.locator("progress")).to_have_attribute("value", str(i))
        places.append((page.locator(".you").get_attribute("cx"), page.locator(".you").get_attribute("cy")))
        widths.append(float(page.locator(".where").get_attribute("rx")))
        panel.locator("fieldset button").first.click()
    assert len(set(places)) == 8
    assert widths[-1] < 0.9 * widths[0]
    expect(panel).to_contain_text("still uncertain")
    assert store.page(10) == []  # until somebody says so nothing is kept
    panel.get_by_label("What to call you").fill("Ann")
    panel.get_by_role("button", name="Keep me and talk").click()

    chat = page.locator("#panel-chat")
    expect(chat.get_by_role("heading", name="Ann")).to_be_visible()
    assert [stored.persona.label for stored in store.page(10)] == ["Ann"]
    chat.get_by_label("Message").fill("Who are you?")
    chat.get_by_role("button", name="Send to all").click()
    expect(chat.locator(".turn.assistant")).to_have_text(["Who are you?"] * 3)

    page.click("#tab-card")
    page.locator("#found").get_by_role("button", name="Ann").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#panel-card")).to_contain_text("Ann is deleted")
    assert store.page(10) == []
    expect(page.locator("#company")).not_to_contain_text("Ann")


# what goes wrong -------------------------------------------------------------------------------------------------
def test_a_busy_server_is_waited_for(visit, echo):
    visited, echo.full = visit(), True
    panel = visited.panel("chat")
    panel.get_by_label("Message").fill(OWN)
    panel.get_by_role("button", name="Send to all").click()
    expect(visited.page.locator("#banner")).to_contain_text(re.compile("Going on in [1-3] s"))
    echo.full = False
    expect(panel.locator(".turn.assistant")).to_have_text([OWN] * 2)
    expect(visited.page.locator("#banner")).to_be_hidden()
    visited.forgive("429")


def test_a_server_that_is_gone_is_looked_for(visit):
    visited = visit()
    page = visited.page
    page.route(re.compile("/v1/|/healthz"), lambda route: route.abort())
    page.locator("#found [data-id=everybody]").click()
    expect(page.locator("#panel-card [role=alert]")).to_contain_text("The server does not answer")
    expect(page.locator("#banner")).to_be_visible()
    page.unroute_all()
    expect(page.locator("#banner")).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#panel-card h2")).to_have_text("everybody")
    visited.forgive("ERR_FAILED")


def test_an_error_of_the_server_is_told_where_it_was_asked(visit):
    visited = visit()
    panel = visited.panel("chat")
    panel.get_by_label("Message").fill("too long")
    panel.get_by_role("button", name="Send to all").click()
    expect(panel.get_by_role("alert").first).to_contain_text("leave out the oldest messages")
    visited.forgive("400")
    panel.get_by_label("Message").fill("one break two")  # in the middle of a stream
    panel.get_by_role("button", name="Send to all").click()
    expect(panel.get_by_role("alert").last).to_contain_text("the server's log says where")


def test_a_key_is_asked_for_and_forgotten_with_the_tab(visit, tmp_path):
    key = Keys.new(tmp_path / "keys.json", "ann")
    visited = visit(Rules(Keys.read(tmp_path / "keys.json"), None), wait=False)
    page = visited.page
    for given in ("pk-guess", key):
        page.get_by_label("Key", exact=True).fill(given)
        page.get_by_role("button", name="Use it").click()
        if given != key:
            expect(page.locator("#key-about")).to_contain_text("does not know this key")
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    visited.forgive("401")


# everybody -------------------------------------------------------------------------------------------------------
def test_everything_is_done_without_a_mouse(visit):
    visited = visit()
    page = visited.page
    page.locator("#find").focus()
    page.keyboard.type("everyb")
    page.keyboard.press("Enter")
    expect(page.locator("#panel-card h2")).to_have_text("everybody")
    add = page.get_by_role("button", name="Add to conversation")
    expect(add).to_be_visible()
    page.locator("#tab-card").focus()
    page.keyboard.press("Tab")
    expect(add).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#company")).to_contain_text("everybody")
    page.locator("#tab-card").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-chat")).to_be_focused()
    expect(page.locator("#panel-chat")).to_be_visible()
    page.get_by_label("Message").focus()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    expect(page.locator("#spoken")).to_contain_text("says: hello")  # told to screen readers, once


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_by_day_and_by_night(visit, scheme):
    visited = visit(width=390, scheme=scheme)
    dark = visited.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    for tab in ("card", "ask", "chat", "blend", "me"):
        visited.panel(tab)
        assert visited.page.evaluate("document.documentElement.scrollWidth") == 390, tab
