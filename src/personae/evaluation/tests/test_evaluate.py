from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from personae.data.survey import Question, Survey
from personae.evaluation import evaluate as module
from personae.evaluation.evaluate import COMBINED, REFERENCES, Predictions, evaluate
from personae.evaluation.plan import Plan, make_plan
from personae.evaluation.pool import combine
from personae.evaluation.rows import ROWS, Row
from personae.evaluation.table import Run
from personae.lm.tiny import tiny_lm
from personae.people.text_opinion_model import TextOpinionModel

PERSON = "steered LM, person"
FAST = ("uniform", "majority", "cohort majority", "opinion model", "raw LM")
LM_ROWS = (PERSON, "steered LM, shuffled people", "opinion model", "opinion model on the question's text", "majority")


@pytest.fixture(scope="module")
def plan(two_camps) -> Plan:
    return make_plan(two_camps, 0.25, 0.2, 0.25, 0.3, given=(1, 4))


@pytest.fixture(scope="module")
def run(plan, tmp_path_factory):
    """A small evaluation with a steerer of two seeds."""
    out = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        for place in ("personae.steering.persona_prompt", "personae.evaluation.fitted"):
            patch.setattr(f"{place}.TextOpinionModel", partial(TextOpinionModel, width=16, steps=40))
        yield partial(evaluate, plan, out, LM_ROWS, (0, 1), 60, lm=tiny_lm("llama"), steps=4, progress=False), out


@pytest.fixture(scope="module")
def found(run) -> dict:
    return run[0](ceiling=0.99)


def test_cells_and_rows(found, plan):
    assert list(found["tables"]) == list(plan.cells) == ["seen", "new", "unseen-1", "unseen-4", "unseen-new"]
    for name, table in found["tables"].items():
        rows = [r["row"] for r in table]
        known = ["majority", "opinion model"] if not plan.cells[name].new else []
        combined = {row for row, parts in COMBINED.items() if plan.cells[name].new in parts}
        assert set(rows) == {*LM_ROWS[:2], LM_ROWS[3], *known, *combined}
        seeds = {r["row"]: r["seeds"] for r in table}
        assert seeds[PERSON] == seeds["hybrid"] == 2
        assert seeds["opinion model on the question's text"] == 1
        for row in table:
            assert row["low"] <= row["accuracy"] <= row["high"]
            assert row["n"] == min(60, len(plan.cells[name]))


def test_lift_is_of_the_ceiling(found):
    rows = {r["row"]: r for r in found["tables"]["seen"]}
    assert rows["majority"]["lift"] == 0
    majority, person = rows["majority"]["accuracy"], rows[PERSON]["accuracy"]
    assert rows[PERSON]["lift"] == pytest.approx((person - majority) / (0.99 - majority))
    assert "lift" not in found["tables"]["new"][0]  # no majority is known of a new question


def test_differences_are_those_of_the_tables(found):
    for name, differences in found["differences"].items():
        rows = {r["row"]: r for r in found["tables"][name]}
        for d in differences:
            assert d["minus"] in REFERENCES[name.endswith("new")]
            for key in ("accuracy", "nll"):
                wanted = rows[d["row"]][key] - rows[d["minus"]][key]
                assert d[key]["estimate"] == pytest.approx(wanted, abs=1e-6)
                assert d[key]["low"] <= d[key]["estimate"] <= d[key]["high"]


def test_weights_come_from_the_tuning_answers_alone(found, run, plan):
    kept = Predictions(run[1], found["identity"])
    tuning = plan.sample(60).tuning
    for seed, (w,) in enumerate(found["weights"]["seen"]["steered LM, person, calibrated"]):
        p = kept.get("tuning", PERSON, seed).p
        at = np.arange(len(p)), tuning.pairs.option

        def loss(weight, p=p, at=at):
            return -np.log(combine([p], [weight])[at]).mean()

        assert loss(w) <= min(loss(w * 1.05), loss(w / 1.05)) + 1e-6


def test_the_result_is_a_file(found, run):
    saved = json.loads((run[1] / "result.json").read_text())
    assert saved["tables"] == found["tables"]
    assert saved["identity"]["plan"] == found["identity"]["plan"]
    assert {"python", "torch", "threads"} <= saved["machine"].keys()
    assert saved["settings"]["seeds"] == [0, 1]
    for name in ("given", "reliability", "cohorts", "distributions"):
        assert (run[1] / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_result_is_a_page(found, run):
    page = (run[1] / "result.md").read_text()
    for name, cell in found["tables"].items():
        section = page.split(f"## {name}: ")[1].split("\n## ")[0]
        for row in cell:
            assert f"| {row['row']} | " in section
            assert f"{row['low']:.1%} to {row['high']:.1%}" in section
    best = max(found["tables"]["seen"], key=lambda r: r["accuracy"])
    assert f"| {best['row']} | **{best['accuracy']:.1%}** |" in page


def test_finished_rows_are_not_run_again(found, run, monkeypatch):
    def never(*_):
        raise AssertionError("it was run again")

    for name, row in list(ROWS.items()):
        monkeypatch.setitem(ROWS, name, Row(**{**vars(row), "predict": never}))
    assert run[0](ceiling=0.99)["tables"] == found["tables"]


def test_an_interrupted_run_goes_on(plan, tmp_path, monkeypatch):
    whole = evaluate(plan, tmp_path / "whole", FAST, lm=tiny_lm("llama"))
    done = []
    for name in FAST:
        row = ROWS[name]

        def predict(fitted, cell, row=row):
            if len(done) == 7:
                raise KeyboardInterrupt
            done.append((cell.name, row.name))
            return row.predict(fitted, cell)

        monkeypatch.setitem(ROWS, name, Row(**{**vars(row), "predict": predict}))
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, tmp_path / "part", FAST, lm=tiny_lm("llama"))
    monkeypatch.undo()
    assert evaluate(plan, tmp_path / "part", FAST, lm=tiny_lm("llama"))["tables"] == whole["tables"]


def test_the_folder_of_another_evaluation_is_refused(plan, tmp_path):
    evaluate(plan, tmp_path, ["majority"], answers=30, lm=tiny_lm("llama"))
    with pytest.raises(ValueError, match=r"holds another evaluation \(answers, plan differ\)"):
        evaluate(plan, tmp_path, ["majority"], answers=20, lm=tiny_lm("llama"))


def test_a_budget_buys_fewer_answers_of_slow_rows_and_says_so(plan, tmp_path, monkeypatch):
    asked, clock = [], [0.0]
    row = ROWS["LM with traits as text"]

    def predict(fitted, cell):
        asked.append(len(cell))
        clock[0] += len(cell)  # a second an answer
        return ROWS["raw LM"].predict(fitted, cell)

    monkeypatch.setitem(ROWS, row.name, Row(**{**vars(row), "predict": predict}))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    rows = ["majority", row.name]
    found = evaluate(plan, tmp_path, rows, slow_answers=100, budget=3.4, lm=tiny_lm("llama"))
    n = {name: {r["row"]: r["n"] for r in table} for name, table in found["tables"].items()}
    assert n["seen"][row.name] == 40  # 204 s, five cells
    assert n["seen"]["majority"] == len(plan.cells["seen"])
    assert all(16 <= of[row.name] <= 40 for of in n.values())

    def of_seen(budget: float) -> tuple[int, int]:
        asked.clear()
        again = evaluate(plan, tmp_path, rows, slow_answers=100, budget=budget, lm=tiny_lm("llama"))
        return next(r["n"] for r in again["tables"]["seen"] if r["row"] == row.name), len(asked)

    assert of_seen(3.4) == (40, 0)  # the same budget, the same answers
    assert of_seen(4.0) == (40, 0)  # not worth predicting anew
    whole = len(plan.cells["seen"])
    assert 40 < whole <= 96  # 480 s, five cells
    assert of_seen(8.0)[0] == whole
    assert of_seen(3.4)[0] == whole  # what is kept stays


def test_no_prediction_is_half_written(tmp_path, monkeypatch):
    kept = Predictions(tmp_path, {"a": 1})
    run = Run(np.array([0, 2]), np.array([[0.5, 0.5], [1.0, 0.0]], dtype=np.float32))
    kept.put("seen", "a row, of mine", 3, run)
    again = kept.get("seen", "a row, of mine", 3)
    assert (again.at == run.at).all()
    assert (again.p == run.p).all()
    assert kept.get("seen", "a row, of mine", 4) is None

    def crash(self, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("pandas.DataFrame.to_parquet", crash)
    with pytest.raises(KeyboardInterrupt):
        kept.put("seen", "another", 0, run)
    assert kept.get("seen", "another", 0) is None


@pytest.fixture
def three_questions() -> Survey:
    """120 people who differ in three yes-or-no questions alone, of whom two have a trait that nobody else has."""
    rng = np.random.default_rng(0)
    said = rng.integers(0, 2, (120, 3))
    person, question = np.nonzero(np.ones((120, 3)))
    side = np.where(rng.random(120) < 0.5, "left", "right")
    traits = pd.DataFrame({"rare": ["x", "y", *[None] * 118], "side": side}, dtype=object)
    questions = [Question(f"q{j}", f"More of number {j}?", ("no", "yes")) for j in range(3)]
    return Survey(questions, [f"r{i}" for i in range(120)], person, question, said[person, question], traits)


def test_more_cohorts_than_people_can_be_split_into_are_left_out(three_questions, tmp_path):
    plan, said = make_plan(three_questions.keep_answers(three_questions.question != 2)), []
    rows = ["majority", *(f"cohort majority, {k}" for k in (6, 10, 20)), *(f"steered LM, {k} cohorts" for k in (6, 20))]
    how = {"lm": tiny_lm("llama"), "seeds": (0,), "steps": 1, "progress": False}
    for _ in range(2):
        found = evaluate(plan, tmp_path, rows, say=said.append, **how)
        shown = {r["row"] for r in found["tables"]["seen"]}
        assert shown == {"majority", "cohort majority, 6", "steered LM, 6 cohorts"}
    assert (
        said.count("cohort majority, 10: left out, since people are too few or differ too little for so many cohorts")
        == 2
    )
    assert len([text for text in said if "left out" in text]) == 6  # 10, 20 and the steered 20, twice


def test_a_trait_of_two_people_leaves_out_its_lines_alone(three_questions, tmp_path):
    rare = three_questions.respondent < 2
    plan = make_plan(three_questions)
    pairs = plan.cells["seen"].pairs
    kept = pairs[np.flatnonzero(~np.isin(pairs.respondents, ["r0", "r1"]))]
    assert rare.any()
    plan = replace(plan, cells={"seen": replace(plan.cells["seen"], pairs=kept)})
    found = evaluate(plan, tmp_path, ["majority"], lm=tiny_lm("llama"))
    by = {line["groups_by"] for line in found["coherence"]}
    assert "side" in by
    assert "rare" not in by
    assert (tmp_path / "result.md").exists()


# behind the tables -------------------------------------------------------------------------------------------------
def test_groups_are_the_cohorts_and_the_traits(found):
    near = found["groups"]["seen"]["representativeness"]
    assert {line["by"] for line in near} == {"everybody", "cohort", "side"}
    mine = [line for line in near if line["row"] == "opinion model" and line["by"] == "side"]
    assert [line["group"] for line in mine] == ["left", "right"]
    gaps = {g["trait"]: g for g in found["groups"]["seen"]["gaps"] if g["row"] == "majority"}
    assert gaps["side"]["gap"] == pytest.approx(gaps["side"]["highest_mean"] - gaps["side"]["lowest_mean"])


def test_camps_hang_together_and_random_groups_do_not(found):
    explained = {line["groups_by"]: line["explained"] for line in found["coherence"]}
    assert explained["side"] > 0.3
    assert explained["random, sizes of side"] < 0.1


def test_observed_shares_by_hand(found, plan):
    pairs = plan.sample(60).cells["seen"].pairs
    for one in found["distributions"]["seen"]:
        j = [q.id for q in pairs.questions].index(one["question"])
        given = pairs.option[pairs.question == j]
        wanted = np.bincount(given, minlength=len(one["options"])) / len(given)
        np.testing.assert_allclose(one["shares"]["observed"], wanted, atol=1e-4)
        assert set(one["shares"]) == {"observed", PERSON, "opinion model", "opinion model on the question's text"}


def test_free_text_is_kept_and_has_its_controls(run, found):
    again = run[0](replies=6)
    assert (run[1] / "free-text-0-6.json").exists()
    assert run[0](replies=6)["free_text"] == again["free_text"]
    for rows in again["free_text"].values():
        assert [r["row"] for r in rows][-3:] == ["steered LM, shuffled people", PERSON, "the answer itself, stated"]
        assert all(r["n"] == 6 and -1e-6 < r["low"] <= r["agreement"] <= r["high"] < 1 + 1e-6 for r in rows)
        shuffled = rows[-3]["agreement"]
        assert [r["less_shuffled"]["estimate"] for r in rows] == pytest.approx(
            [r["agreement"] - shuffled for r in rows]
        )


def test_tables_keep_rows_that_another_call_ran(plan, tmp_path):
    how = {"answers": 40, "lm": tiny_lm("llama"), "replies": 0}
    evaluate(plan, tmp_path, ["majority"], **how)
    found = evaluate(plan, tmp_path, ["uniform"], **how)
    assert [r["row"] for r in found["tables"]["seen"]] == ["majority"]
    assert [r["row"] for r in found["tables"]["new"]] == ["uniform"]
    assert found["tables"]["new"][0]["questions"] == 2


def test_a_trial_with_few_slow_answers_does_not_stay(plan, tmp_path):
    how = {"answers": 40, "lm": tiny_lm("llama")}
    row = "LM with traits as text"
    for slow, kept in ((10, 10), (20, 20), (15, 20)):
        found = evaluate(plan, tmp_path, [row], slow_answers=slow, **how)
        assert found["tables"]["seen"][0]["n"] == kept


# leakage -----------------------------------------------------------------------------------------------------------
def test_test_answers_reach_nothing_that_is_fitted(plan, run, found, tmp_path):
    """With every answer to predict replaced by another, all predictions stay the same, bit for bit."""

    def other(pairs):
        n = np.array([len(q.options) for q in pairs.questions])[pairs.question]
        return replace(pairs, option=(pairs.option + 1) % n)

    pairs = {id(c.pairs): other(c.pairs) for c in plan.cells.values()}
    swapped = replace(plan, cells={n: replace(c, pairs=pairs[id(c.pairs)]) for n, c in plan.cells.items()})
    again = evaluate(swapped, tmp_path, LM_ROWS, (0,), 60, lm=tiny_lm("llama"), steps=4, progress=False)
    assert again["tables"] != found["tables"]
    mine, theirs = Predictions(tmp_path, again["identity"]), Predictions(run[1], found["identity"])
    for name, cell in plan.cells.items():
        for row in LM_ROWS:
            if ROWS[row].new if cell.new else ROWS[row].known:
                a, b = mine.get(name, row, 0), theirs.get(name, row, 0)
                assert (a.at == b.at).all()
                assert (a.p == b.p).all(), (name, row)
    assert again["weights"]["seen"]["hybrid"][0] == found["weights"]["seen"]["hybrid"][0]
