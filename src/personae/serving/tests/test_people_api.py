"""Personas, answers, cohorts, questions, the map and what to ask next."""

from __future__ import annotations

import json
import time

import httpx
import numpy as np
import pandas as pd
import pytest

from personae import Cohorts, OpinionModel, Survey, load_sample
from personae.bundle import Bundle
from personae.people.inquiry import next_question
from personae.serving.schemas import CELLS, PERSONAS
from personae.serving.tests.conftest import eventually

ME = {"natenvir": "too little", "natarms": "too much"}


def lines(reply: httpx.Response) -> list[dict]:
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in reply.text.splitlines()]


# personas --------------------------------------------------------------------------------------------------------
def test_a_persona_from_answers_to_its_end(client, bundle, echo):
    made = client.post("/v1/personas", json={"answers": ME, "label": "me"})
    assert made.status_code == 201
    me, folded = made.json(), bundle.people.fold_in(ME)
    assert (me["kind"], me["label"], me["uncertainty"]) == ("fold-in", "me", round(folded.uncertainty, 4))
    assert client.get(f"/v1/personas/{me['id']}").json() == me
    assert client.get("/v1/personas").json()["data"] == [me]
    client.post("/v1/chat/completions", json={"model": me["id"], "messages": [{"role": "user", "content": "hi"}]})
    np.testing.assert_allclose(echo.asked[-1][1].vector, folded.vector)
    assert client.delete(f"/v1/personas/{me['id']}").json() == {"id": me["id"], "object": "persona", "deleted": True}
    for method in ("GET", "DELETE"):
        assert client.request(method, f"/v1/personas/{me['id']}").status_code == 404


def test_a_blend_may_hold_what_was_made_here(client, bundle):
    me = client.post("/v1/personas", json={"answers": ME}).json()["id"]
    blend = client.post("/v1/personas", json={"blend": {me: 1, "cohort-0": 3}, "label": "half way"}).json()
    assert blend["kind"] == "blend"
    place = client.get("/v1/personas/cohort-0").json()["place"], client.get(f"/v1/personas/{me}").json()["place"]
    assert blend["place"]["x"] == pytest.approx(0.75 * place[0]["x"] + 0.25 * place[1]["x"], abs=2e-4)


def test_blends_of_blends_stay_small(client, store):
    """Each of so many of the last ones: what is kept of one must not hold what is kept of all before."""
    ids = ["cohort-0", "cohort-1"]
    for _ in range(12):
        made = client.post("/v1/personas", json={"blend": dict.fromkeys(ids[-8:], 1)})
        ids.append(made.json()["id"])
    kept = [len(stored.persona.to_json()) for stored in store.page(100)]
    assert max(kept) < 2 * kept[0] + 1000
    assert len(client.get("/v1/personas").json()["data"][-1]["label"]) <= 200


def test_paging(client):
    ids = [client.post("/v1/personas", json={"blend": {"cohort-0": 1}}).json()["id"] for _ in range(5)]
    first = client.get("/v1/personas?limit=3").json()
    rest = client.get("/v1/personas", params={"limit": 3, "after": first["last_id"]}).json()
    assert [p["id"] for p in first["data"] + rest["data"]] == ids
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert client.get("/v1/personas?after=persona-unknown").status_code == 404


def test_cards_of_those_of_the_bundle(client, bundle):
    for name, kind, people in [
        ("cohort-0", "cohort", int(bundle.cohorts.summary_.people[0])),
        ("r0007", "respondent", None),
        (
            "trait:partyid=strong democrat",
            "trait group",
            bundle.persona("trait:partyid=strong democrat").origin["people"],
        ),
        ("0.5*cohort-0+0.5*r0007", "blend", None),
        ("everybody", "everybody", len(bundle.people)),
    ]:
        card = client.get(f"/v1/personas/{name}").json()
        assert (card["id"], card["kind"], card["people"]) == (name, kind, people)
        assert card["note"].startswith("What a model makes")
        assert client.delete(f"/v1/personas/{name}").status_code == 403
    assert "not what they said" in client.get("/v1/personas/r0007").json()["note"]
    assert client.get("/v1/personas/everybody").json()["place"]["x"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "exactly one"),
        ({"answers": ME, "blend": {"cohort-0": 1}}, "exactly one"),
        ({"answers": {}}, "at least 1"),
        ({"answers": {"natenvi": "too little"}}, "nearest: natenvir"),
        ({"answers": {"natenvir": "yes"}}, "it has: too little"),
        ({"blend": {"cohort-0": 0}}, "greater than 0"),
        ({"vector": [0.1, 0.2]}, "vector: extra inputs"),
        ({"blend": {"cohort-0": 1}, "vector": [0.1]}, "vector"),
        ({"blend": {"cohort-0": 1}, "label": "a\0b"}, "no text"),
    ],
)
def test_what_no_persona_can_be_made_of(client, body, sentence):
    reply = client.post("/v1/personas", json=body)
    assert reply.status_code == 400
    assert sentence in reply.json()["error"]["message"]
    assert client.get("/v1/personas").json()["data"] == []


# answers ---------------------------------------------------------------------------------------------------------
def test_answers_of_the_opinion_model(client, bundle):
    people = bundle.people
    names = ["cohort-0", "r0007", "trait:partyid=strong democrat"]
    questions = [q.id for q in people.questions_]
    body = {"personas": [*names, {"answers": ME, "label": "me"}], "questions": questions, "by": "opinion model"}
    *found, end = lines(client.post("/v1/answers", json=body))
    assert end == {"done": True, "answers": 4 * len(questions)}
    personas = [*(bundle.persona(n) for n in names), people.fold_in(ME)]
    expected = people.predict_proba(personas)
    assert [(line["question_index"], line["persona_index"]) for line in found] == [
        (j, i) for j in range(len(questions)) for i in range(4)
    ]
    for line in found:
        i, j = line["persona_index"], line["question_index"]
        assert line["persona"] == [*names, "me"][i]
        assert list(line["probabilities"]) == list(people.questions_[j].options)
        np.testing.assert_allclose(
            list(line["probabilities"].values()), expected[i, j, : len(line["probabilities"])], atol=1e-6
        )


def test_answers_of_the_language_model_to_new_questions(client):
    questions = [
        "natarms",
        {"text": "Trains for free?", "options": ["no", "yes"]},
        {"id": "z", "text": "And?", "options": ["a", "b", "c", "d"]},
    ]
    *found, end = lines(client.post("/v1/answers", json={"personas": ["cohort-0", "cohort-1"], "questions": questions}))
    assert [line["question"] for line in found] == ["natarms"] * 2 + ["Trains for free?"] * 2 + ["z"] * 2
    assert found[2]["probabilities"] == {"no": 0.5, "yes": 0.5}
    assert {line["by"] for line in found} == {"lm"}
    assert end["answers"] == 6


def test_thousands_of_answers_in_one_call(client, bundle):
    names = list(bundle.people.respondent_ids_)
    body = {"personas": names, "questions": [q.id for q in bundle.people.questions_], "by": "opinion model"}
    reply = client.post("/v1/answers", json=body)
    assert len(reply.text.splitlines()) == len(names) * len(body["questions"]) + 1
    assert (
        f'personae_answers_total{{by="opinion model"}} {len(names) * len(body["questions"])}.0'
        in client.get("/metrics").text
    )


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"personas": []}, 400, "at least 1"),
        ({"personas": ["cohort-0"] * (PERSONAS + 1)}, 400, f"at most {PERSONAS}"),
        ({"personas": ["cohort-0"] * 5000, "questions": ["natarms"] * (CELLS // 5000 + 1)}, 400, "personas x"),
        ({"personas": ["cohort-77"]}, 404, "nearest"),
        ({"personas": [{"name": "cohort-0", "vector": [1]}]}, 400, "personas.0.vector"),
        ({"questions": ["natarm"]}, 400, "nearest: natarms"),
        ({"questions": [{"text": "Yes?", "options": ["yes"]}]}, 400, "questions.0.options"),
        ({"questions": [{"text": "Yes?", "options": ["yes", "yes"]}]}, 400, "different options"),
        ({"questions": [{"text": "Yes?", "options": ["yes", "no"]}], "by": "opinion model"}, 400, "a language model"),
        ({"read": "minds"}, 400, "read"),
    ],
)  # fmt: skip
def test_answers_that_nobody_gives(client, change, status, sentence):
    reply = client.post("/v1/answers", json={"personas": ["cohort-0"], "questions": ["natarms"], **change})
    assert (reply.status_code, sentence in reply.json()["error"]["message"]) == (status, True), reply.text


def test_a_stream_that_broke_off_says_so(serve, echo):
    echo.pause = 0.2
    client = serve(deadline=0.5)
    *found, end = lines(client.post("/v1/answers", json={"personas": ["cohort-0"], "questions": ["natarms"] * 20}))
    assert 0 < len(found) < 20
    assert end["error"]["code"] == "deadline_exceeded"


def test_new_people_are_folded_in_together(client, bundle, monkeypatch):
    calls = slow_fold_in(monkeypatch)
    new = [{"answers": {"natarms": option}} for option in ("too little", "about right", "too much")]
    body = {"personas": ["cohort-0", new[0], {"name": "r0007"}, new[1], {**new[2], "label": "me"}]}
    *found, _ = lines(client.post("/v1/answers", json={**body, "questions": ["natenvir"], "by": "opinion model"}))
    assert [line["persona"] for line in found] == ["cohort-0", "new person", "r0007", "new person", "me"]
    assert calls == [3]
    for line, spec in zip((found[1], found[3], found[4]), new, strict=True):
        expected = bundle.people.predict_proba([bundle.people.fold_in(spec["answers"])], "natenvir")[0, 0]
        np.testing.assert_allclose(list(line["probabilities"].values()), expected[:3], atol=1e-6)


def test_the_deadline_holds_before_anything_is_answered(serve, echo, monkeypatch):
    calls = slow_fold_in(monkeypatch, seconds=0.2)
    body = {"personas": [{"answers": ME}] * 2000, "questions": ["natarms"]}
    reply = serve(deadline=0.3).post("/v1/answers", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert sum(calls) < 2000


def slow_fold_in(monkeypatch, seconds: float = 0.0) -> list[int]:
    """How many people were folded in by each call."""
    calls, fold_in = [], OpinionModel.fold_in

    def counted(self, answers):
        calls.append(len(answers))
        time.sleep(seconds)
        return fold_in(self, answers)

    monkeypatch.setattr(OpinionModel, "fold_in", counted)
    return calls


def test_a_client_that_leaves_ends_the_answers(live, echo):
    echo.pause = 0.05
    url = live()
    body = {"personas": ["cohort-0"], "questions": ["natarms"] * 2000}
    begin = time.monotonic()
    with httpx.stream("POST", f"{url}/v1/answers", json=body) as reply:
        next(reply.iter_lines())
    assert eventually(lambda: echo.closed == 1)
    assert time.monotonic() - begin < 40  # all of it would take 50


# the survey ------------------------------------------------------------------------------------------------------
def test_questions(client, bundle):
    found = client.get("/v1/questions").json()["data"]
    assert [q["id"] for q in found] == [q.id for q in bundle.people.questions_]
    shares = [p for q in found for p in q["population"] if p is not None]
    assert len(shares) > 30
    answers = bundle.cohorts.profiles_.answers
    row = answers[(answers.question == "natenvir") & (answers.option == "too little")].iloc[0]
    assert next(q for q in found if q["id"] == "natenvir")["population"][0] == pytest.approx(
        row.population_share, abs=1e-6
    )


def test_cohorts(client, bundle):
    found = client.get("/v1/cohorts").json()
    assert (found["people"], found["minimum"]) == (len(bundle.people), 10)
    assert [c["id"] for c in found["data"]] == [p.name for p in bundle.cohorts]
    assert found["data"][0]["people"] == int(bundle.cohorts.summary_.people[0])
    whole = client.get("/v1/cohorts/cohort-1").json()
    assert len(whole["answers"]) > len(found["data"][1]["answers"]) > 0
    assert client.get("/v1/cohorts/cohort-44").json()["error"]["code"] == "cohort_not_found"


def test_no_figure_of_fewer_than_ten_people_leaves_the_server(client, bundle):
    """Everywhere, and no cell that a reader could compute."""
    seen = 0
    for c in range(len(bundle.cohorts)):
        card = client.get(f"/v1/cohorts/cohort-{c}").json()
        for cells in (card["answers"], card["traits"]):
            for name in {cell["name"] for cell in cells}:
                mine = [cell for cell in cells if cell["name"] == name]
                hidden = [cell for cell in mine if cell["count"] is None]
                assert all(cell["count"] >= 10 for cell in mine if cell not in hidden)
                assert all(cell[figure] is None for cell in hidden for figure in ("share", "low", "high"))
                if hidden and mine[0]["n"] is not None and len(hidden) < len(mine):
                    seen += 1
                    assert len(hidden) > 1
                    assert mine[0]["n"] - sum(cell["count"] or 0 for cell in mine) >= 10
    assert seen > 3


def test_small_cohorts_and_trait_groups_have_no_figures(serve, tmp_path):
    survey = load_sample()
    few = survey.select(survey.respondent_ids[:80])
    people = OpinionModel(n_components=2).fit(few)
    cohorts = Cohorts(k=8).fit(people, few)
    sizes = np.bincount(cohorts.labels_, minlength=8)
    assert (sizes < 10).any()
    small = Bundle.write(tmp_path / "few", people, cohorts)
    client = serve(bundle=small)
    found = client.get("/v1/cohorts").json()["data"]
    shown = [c["people"] for c in found]
    for size, cohort in zip(sizes, found, strict=True):
        assert cohort["people"] in (None, size)
        if size < 10:
            assert (cohort["people"], cohort["place"], cohort["distance"], cohort["answers"]) == (None, None, None, [])
    left = 80 - sum(n or 0 for n in shown)
    assert shown.count(None) > 1
    assert left >= 10
    place = client.get("/v1/map").json()
    hidden = {c for c in range(8) if shown[c] is None}
    assert hidden.isdisjoint(place["people"]["cohort"])
    assert {g["id"] for g in place["cohorts"]} == {f"cohort-{c}" for c in range(8) if c not in hidden}
    names = [m["id"] for m in client.get("/v1/models?limit=200").json()["data"] if m["kind"] == "trait group"]
    counts = few.traits.partyid.value_counts()
    listed = {n.removeprefix("trait:partyid=") for n in names if n.startswith("trait:partyid=")}
    assert listed <= set(counts[counts >= 10].index)
    assert 80 - counts[list(listed)].sum() >= 10


@pytest.fixture
def with_a_minority(tmp_path) -> Bundle:
    """120 people, of whom 70, 49 and one gave three values of a trait."""
    sample = load_sample()
    some = sample.select(sample.respondent_ids[:120])
    side = ["left"] * 70 + ["right"] * 49 + ["other"]
    even = ["other"] * 60 + ["x"] * 60  # of a trait whose groups have the names of those of the first
    traits = pd.DataFrame({"side": [f"a={s}" for s in side], "side=a": even}, index=some.respondent_ids)
    survey = Survey(some.questions, some.respondent_ids, some.respondent, some.question, some.option, traits)
    people = OpinionModel(n_components=3).fit(survey)
    return Bundle.write(tmp_path / "minority", people, Cohorts(k=2).fit(people, survey))


@pytest.mark.parametrize("value", ["a=right", "a=other", "no such value"])
def test_nobody_speaks_for_a_group_whose_size_is_hidden(serve, with_a_minority, echo, value):
    """Everybody's mean less that of the two large groups would be where the one of the third stands."""
    client, hidden = serve(bundle=with_a_minority), f"trait:side={value}"
    assert [g["id"] for g in client.get("/v1/map").json()["traits"]] == ["trait:side=a=left"]
    listed = [m["id"] for m in client.get("/v1/models?limit=200").json()["data"] if m["kind"] == "trait group"]
    assert listed == ["trait:side=a=left"]
    assert client.get("/v1/personas/trait:side=a=left").json()["people"] == 70
    said = [{"role": "user", "content": "hi"}]
    refused = []
    for name in (hidden, f"1*{hidden}", f"0.5*trait:side=a=left+0.5*{hidden}"):
        refused += [client.get(f"/v1/personas/{name}"), client.get(f"/v1/models/{name}")]
        refused += [client.delete(f"/v1/personas/{name}")]
        refused += [client.post("/v1/personas", json={"blend": {"cohort-0": 1, name: 1}})]
        for who in (name, {"name": name}, {"blend": {name: 1}}):
            for by in ("lm", "opinion model"):
                body = {"personas": ["trait:side=a=left", who], "questions": ["natarms"], "by": by}
                refused.append(client.post("/v1/answers", json=body))
            refused.append(client.post("/v1/chat/completions", json={"model": "m", "messages": said, "persona": who}))
            refused.append(client.post("/v1/completions", json={"model": "m", "prompt": "hi", "persona": who}))
        refused.append(client.post("/v1/chat/completions", json={"model": name, "messages": said}))
    assert {r.status_code for r in refused} == {404}
    messages = [r.json()["error"]["message"] for r in refused]
    assert all("GET /v1/models lists the trait groups" in m and "people" not in m for m in messages)
    assert (echo.asked, client.get("/v1/personas").json()["data"]) == ([], [])


def test_the_map(client, bundle):
    place = client.get("/v1/map").json()
    columns = place["people"]
    assert place["of"] == len(bundle.people) == len(columns["id"])
    assert {len(column) for column in columns.values()} == {len(bundle.people)}
    person = client.get("/v1/personas/r0007").json()
    row = columns["id"].index("r0007")
    assert (columns["x"][row], columns["y"][row]) == pytest.approx(
        (person["place"]["x"], person["place"]["y"]), abs=1e-3
    )
    group = next(g for g in place["traits"] if g["id"] == "trait:partyid=strong democrat")
    card = client.get("/v1/personas/trait:partyid=strong democrat").json()
    assert (group["x"], group["people"]) == (pytest.approx(card["place"]["x"], abs=1e-3), card["people"])
    assert [len(place["cohorts"]), len(place["axes"])] == [4, 2]


def test_make_me(client, bundle):
    answers: dict[str, str] = {}
    left = [1.0]
    for _ in range(8):
        found = client.post("/v1/next-question", json={"answers": answers}).json()
        assert found["persona"]["uncertainty"] == pytest.approx(left[-1], abs=1e-3)
        assert found["question"]["id"] == next_question(bundle.people, answers).question.id
        left.append(found["uncertainty_after"])
        answers[found["question"]["id"]] = found["question"]["options"][0]
    assert left == sorted(left, reverse=True)
    spread = np.trace(found["persona"]["place"]["covariance"])
    nobody = client.post("/v1/next-question", json={}).json()["persona"]["place"]["covariance"]
    assert spread < np.trace(nobody)
    done = client.post("/v1/next-question", json={"answers": answers, "among": list(answers)}).json()
    assert (done["question"], done["uncertainty_after"]) == (None, None)
    assert client.get("/v1/personas").json()["data"] == []  # nothing is kept


def test_no_reply_holds_a_vector_or_an_answer(client, bundle):
    client.post("/v1/personas", json={"answers": ME})
    for path in ("/v1/personas", "/v1/personas/r0007", "/v1/models?limit=1000", "/v1/map", "/v1/cohorts"):
        text = client.get(path).text
        assert "vector" not in text
        assert repr(round(float(bundle.people["r0007"].vector[0]), 4)) not in text
        assert "too little" not in client.get("/v1/personas").text
