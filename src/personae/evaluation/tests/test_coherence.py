from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.data.survey import Question, Survey
from personae.evaluation import coherence as module
from personae.evaluation.coherence import coherence, crossed, random_groups
from personae.evaluation.plan import Pairs

YES_NO = Question("q0", "?", ("no", "yes"))
SCALE = Question("q1", "?", ("never", "at times", "always"))


def survey(answers: list[tuple[str, int, int]], questions: tuple[Question, ...] = (YES_NO, SCALE)) -> Survey:
    """Of (respondent, question, option)."""
    names = sorted({who for who, _, _ in answers})
    return Survey(
        questions, names, [names.index(w) for w, _, _ in answers], [q for _, q, _ in answers], [k for *_, k in answers]
    )


def pairs(answers: list[tuple[str, int, int]], questions: tuple[Question, ...] = (YES_NO, SCALE)) -> Pairs:
    who, question, option = zip(*answers, strict=True)
    return Pairs(np.array(who, dtype=object), questions, np.array(question), np.array(option))


def camps(share: float = 0.8, people: int = 400, questions: int = 10, seed: int = 0) -> tuple[Survey, Pairs, pd.Series]:
    """Two camps, of which one says yes with probability ``share`` and the other with 1 - ``share``."""
    rng = np.random.default_rng(seed)
    asked = tuple(Question(f"q{j}", "?", ("no", "yes")) for j in range(questions))
    ids = pd.Index([f"r{i}" for i in range(people)], dtype=object)
    side = np.arange(people) % 2
    said = rng.random((people, questions)) < np.where(side == 1, share, 1 - share)[:, None]
    held = rng.random((people, questions)) < 0.4
    train = Survey(asked, ids, *np.nonzero(~held), said[~held].astype(int))
    who, question = np.nonzero(held)
    return train, Pairs(ids.to_numpy()[who], asked, question, said[held].astype(int)), pd.Series(side, index=ids)


@pytest.fixture
def lean_ten(monkeypatch):
    monkeypatch.setattr(module, "_LEAN", (10.0,))


TRAIN = [("a1", 0, 0), ("a2", 0, 0), ("b1", 0, 1), ("b2", 0, 1)]
GROUPS = pd.Series({"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "b3": "b"})


def test_groups_that_agree_by_hand():
    (row,) = coherence(survey(TRAIN), pairs([("a3", 0, 0), ("b3", 0, 1)]), GROUPS).to_dict("records")
    assert row == {
        "groups": 2,
        "people": 4,
        "explained": 1.0,
        "accuracy": 1.0,
        "majority": 0.5,  # two said no and two yes, so the question's is the first
        "answers": 2,
        "left_out": 0,
    }


def test_explained_by_hand(lean_ten):
    """Mean 1/2, group's mean 0 from two answers, leaning with ten: 1/2 - 2/12 x 1/2 = 5/12."""
    found = coherence(survey(TRAIN), pairs([("a3", 0, 0)]), GROUPS)
    assert found["explained"][0] == pytest.approx(1 - (5 / 12) ** 2 / (1 / 2) ** 2)
    found = coherence(survey(TRAIN), pairs([("a3", 0, 0), ("a2", 0, 1)]), GROUPS)
    assert found["explained"][0] == pytest.approx(1 - ((5 / 12) ** 2 + (7 / 12) ** 2) / (2 * (1 / 2) ** 2))
    assert found["explained"][0] < 0


def test_every_answer_by_hand(lean_ten):
    """Against loops, with questions of different lengths, empty cells, ties and people without a group."""
    rng = np.random.default_rng(1)
    asked = tuple(Question(f"q{j}", "?", tuple("abcd"[:k])) for j, k in enumerate([2, 3, 4, 3, 2]))
    people = [f"r{i}" for i in range(40)]
    cells = [(w, j, int(rng.integers(len(asked[j].options)))) for w in people for j in range(5) if rng.random() < 0.5]
    known, held = cells[::2], cells[1::2]
    group = {w: rng.choice(["x", "y", "z", None], p=[0.5, 0.3, 0.1, 0.1]) for w in people}
    row = coherence(survey(known, asked), pairs(held, asked), pd.Series(group)).iloc[0]

    def value(j: int, k: int) -> float:
        return k / (len(asked[j].options) - 1)

    def top(options: list[int]) -> list[int]:
        counts = Counter(options)
        return sorted(k for k in counts if counts[k] == max(counts.values()))

    errors, variance, hits, majority = [], [], [], []
    for who, j, k in held:
        if group[who] is None:
            continue
        everybody = [o for w, q, o in known if q == j and group[w] is not None]
        mine = [o for w, q, o in known if q == j and group[w] == group[who]]
        mean = np.mean([value(j, o) for o in everybody])
        predicted = (sum(value(j, o) for o in mine) + 10 * mean) / (len(mine) + 10)
        errors.append((value(j, k) - predicted) ** 2)
        variance.append((value(j, k) - mean) ** 2)
        best = top(mine) if len(top(mine)) == 1 else top(everybody)
        hits.append(best[0] == k)
        majority.append(top(everybody)[0] == k)
    assert row["explained"] == pytest.approx(1 - sum(errors) / sum(variance))
    assert row["accuracy"] == pytest.approx(np.mean(hits))
    assert row["majority"] == pytest.approx(np.mean(majority))
    assert row["answers"] == len(errors) < len(held) == row["answers"] + row["left_out"]
    assert row["people"] == len({w for w, _, _ in known if group[w] is not None})
    assert row["groups"] == 3


def test_true_groups_explain_random_ones_do_not():
    train, held, side = camps(share=0.8)
    true, random = coherence(train, held, side), coherence(train, held, random_groups(side))
    assert true["explained"][0] == pytest.approx(0.36, abs=0.04)  # 0.3^2 of 0.25
    assert true["accuracy"][0] == pytest.approx(0.8, abs=0.03)
    assert true["majority"][0] == pytest.approx(0.5, abs=0.03)
    assert abs(random["explained"][0]) < 0.01
    assert random["accuracy"][0] == pytest.approx(0.5, abs=0.04)


def test_many_small_groups_are_not_at_a_disadvantage():
    train, held, side = camps(people=600)
    pairs_of_people = pd.Series(np.arange(600) // 4 + 150 * (np.arange(600) % 2), index=side.index)  # of one camp each
    assert coherence(train, held, pairs_of_people)["explained"][0] > 0.05
    assert abs(coherence(train, held, random_groups(pairs_of_people))["explained"][0]) < 0.01


def test_groups_that_mislead_are_not_believed():
    train, held, side = camps()
    turned = Pairs(held.respondents, held.questions, held.question, 1 - held.option)
    row = coherence(train, turned, side).iloc[0]
    assert row["explained"] == 0
    assert row["accuracy"] < 0.25


def test_how_far_to_lean_is_not_chosen_on_the_answers_that_are_predicted():
    """One half agrees with its groups, the other contradicts them: each half is told the wrong thing."""
    people = [f"{side}{i}" for i in range(20) for side in "ab"]
    half = dict(zip(people, module._half(np.array(people, dtype=object)), strict=True))
    assert sorted(half.values()) == [0] * 20 + [1] * 20
    train = survey([(f"{side}0", 0, int(side == "b")) for side in "ab"])
    held = pairs([(w, 0, int((w[0] == "b") == (half[w] == 0))) for w in people])
    groups = pd.Series({w: w[0] for w in people})
    found = coherence(train, held, groups)["explained"][0]
    assert found == pytest.approx((0 + -3) / 2)  # those who agree are not believed, those who contradict are


def test_a_topic_counts_alone():
    train, held, side = camps(questions=6)
    noise = held.question >= 3
    mixed = Pairs(held.respondents, held.questions, held.question, np.where(noise, 0, held.option))
    whole, part = coherence(train, mixed, side), coherence(train, mixed, side, topic=["q0", "q1", "q2"])
    alone = coherence(train.select(questions=["q0", "q1", "q2"]), mixed[~noise], side)
    pd.testing.assert_frame_equal(part, alone)
    assert part["answers"][0] == (~noise).sum()
    assert part["left_out"][0] == 0
    assert whole["explained"][0] < part["explained"][0]
    with pytest.raises(SurveyError, match='no question "q9"'):
        coherence(train, held, side, topic=["q0", "q9"])


def test_answers_without_group_or_question_are_counted():
    held = pairs([("a3", 0, 0), ("nobody", 0, 1), ("b3", 1, 2), ("a2", 0, 1)])
    groups = pd.concat([GROUPS, pd.Series({"someone else": "c"})])
    groups["a2"] = None
    row = coherence(survey(TRAIN), held, groups).iloc[0]
    assert (row["answers"], row["left_out"]) == (1, 3)
    assert (row["groups"], row["people"]) == (2, 3)
    new = (Question("new", "?", ("a", "b")), SCALE)
    assert coherence(survey(TRAIN), pairs([("a3", 0, 1), ("a3", 0, 0)]), GROUPS)["left_out"][0] == 0
    with pytest.raises(ValueError, match="none of 1 held-out answers can be predicted from 2 groups"):
        coherence(survey(TRAIN), pairs([("a3", 0, 1)], new), GROUPS)


def test_one_group_explains_nothing():
    train, held, side = camps()
    row = coherence(train, held, pd.Series("all", index=side.index)).iloc[0]
    assert row["explained"] == 0
    assert row["accuracy"] == row["majority"]


def test_nothing_to_explain():
    same = survey([("a1", 0, 1), ("b1", 0, 1)])
    assert np.isnan(coherence(same, pairs([("a3", 0, 1)]), GROUPS)["explained"][0])


def test_labels_and_order_do_not_matter():
    train, held, side = camps(people=60)
    one = coherence(train, held, side)
    pd.testing.assert_frame_equal(one, coherence(train, held, side[::-1].map({0: "zeta", 1: "alpha"})))
    order = np.random.default_rng(0).permutation(len(held))
    pd.testing.assert_frame_equal(one, coherence(train, held[order], side))


def test_refused():
    with pytest.raises(ValueError, match='"a1" is in two groups'):
        coherence(survey(TRAIN), pairs([("a3", 0, 0)]), pd.concat([GROUPS, GROUPS[:1]]))
    with pytest.raises(ValueError, match="can be predicted from 0 groups"):
        coherence(survey(TRAIN), pairs([("a3", 0, 0)]), pd.Series({"a1": None, "a3": None}))


# groups ----------------------------------------------------------------------------------------------------------
def test_random_groups_keep_sizes_and_people():
    groups = pd.Series(["x"] * 30 + ["y"] * 60 + [None] * 10, index=[f"r{i}" for i in range(100)])
    dealt = random_groups(groups, seed=1)
    assert dealt.index.equals(groups.index)
    assert dealt.value_counts().to_dict() == {"x": 30, "y": 60}
    assert dealt.isna().equals(groups.isna())
    assert not dealt.equals(groups)
    assert dealt.equals(random_groups(groups, seed=1))
    assert not dealt.equals(random_groups(groups, seed=2))


def test_crossed():
    traits = pd.DataFrame(
        {"side": ["left", "right", None, "left"], "age": ["18-29", "30-49", "18-29", None], "sex": list("fmfm")},
        index=["a", "b", "c", "d"],
    )
    assert crossed(traits, ["side"]).tolist() == ["side: left", "side: right", "side: missing", "side: left"]
    assert crossed(traits, ["age", "side"]).to_dict() == {
        "a": "age: 18-29; side: left",
        "b": "age: 30-49; side: right",
        "c": "age: 18-29; side: missing",
        "d": "age: missing; side: left",
    }
    assert crossed(traits, ["side", "age", "sex"]).nunique() == 4
    with pytest.raises(SurveyError, match='no trait "sid"; nearest: side'):
        crossed(traits, ["sid"])
    with pytest.raises(ValueError, match="no traits to cross"):
        crossed(traits, [])
