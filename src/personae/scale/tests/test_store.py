from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from personae.data.account import SurveyError
from personae.data.long import LONG_COLUMNS, read_long
from personae.data.survey import Question
from personae.scale import store as module
from personae.scale.store import AnswerStore, place

TEA = Question("tea", "Tea?", ("yes", "no"))
DOG = Question("dog", "A dog?", ("big", "small", "none"))


@pytest.fixture
def write(tmp_path):
    def write(rows: list[tuple], questions: object = (TEA, DOG), **settings: object) -> AnswerStore:
        frame = pd.DataFrame(rows, columns=["respondent", "question", "answer"])
        frame.to_parquet(tmp_path / "long.parquet", index=False)
        return AnswerStore.write(tmp_path / "long.parquet", questions, tmp_path / "store", **settings)

    return write


def test_holds_every_answer_whatever_the_order_of_rows(survey, store):
    assert len(store.shards) == 4
    assert (store.n_people, store.n_answers) == (survey.n_respondents, survey.n_answers)
    assert np.array_equal(store.counts, survey.option_counts())
    assert store.questions == survey.questions
    back = store.survey()
    assert back.select(survey.respondent_ids).to_frame().equals(survey.to_frame())


def test_small_batches_give_the_same_shards(survey, store, long, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 100)
    again = AnswerStore.write(long, survey.questions, tmp_path / "again", answers_per_shard=3000)
    assert again.sizes == store.sizes
    for k in store.shards:
        assert set(again.respondents(k)) == set(store.respondents(k))


def test_a_shard_is_sorted_by_person_and_question(store):
    said = store.read(1)
    assert (said.start[0], said.start[-1]) == (0, len(said.option))
    for i in range(len(said.start) - 1):
        assert (np.diff(said.question[said.start[i] : said.start[i + 1]]) > 0).all()


def test_a_share_keeps_whole_people_and_more_of_a_question_where_asked(store, survey):
    few = store.survey(0.3)
    assert 0.2 < few.n_respondents / survey.n_respondents < 0.4
    whole = store.survey().select(few.respondent_ids)
    assert few.to_frame().equals(whole.to_frame())
    share = np.full(30, 0.3)
    share[7] = 1
    more = store.survey(share)
    column = more.question == 7
    assert column.sum() == survey.option_counts()[7].sum()
    assert more.n_answers - column.sum() == few.n_answers - (few.question == 7).sum()
    with pytest.raises(SurveyError, match="holds nobody"):
        store.survey(0.0)


def test_places_are_uniform_and_fixed():
    where = place(np.array([f"r{i}" for i in range(10_000)], dtype=object))
    assert np.abs(np.histogram(where, 10, (0, 1))[0] - 1000).max() < 150
    assert where[0] == place(np.array(["r0"], dtype=object))[0]


def test_what_is_skipped_is_in_the_account(write, tmp_path):
    third = Question("cat", "A cat?", ("yes", "no"))
    rows = [
        ("ann", "tea", "yes"),
        ("bob", "tea", None),
        ("bob", "car", "red"),
        ("bob", "dog", " none "),
        (7, "dog", ""),
    ]
    store = write([(str(who), *rest) for who, *rest in rows], (TEA, third, DOG))
    assert [q.id for q in store.questions] == ["tea", "dog"]
    assert store.survey().answers_of("bob") == {"dog": "none"}
    assert store.counts.tolist() == [[1, 0, 0], [0, 0, 1]]
    notes = {note["reason"]: (note["count"], note["examples"]) for note in store.account["notes"]}
    assert notes["row without an answer"][0] == 2
    assert notes["respondent without answers, left out"] == (1, ["7"])
    assert notes["answer to a question that is not in the questions table, skipped"] == (1, ["car"])
    assert notes["question nobody answered, left out"] == (1, ["cat"])
    assert AnswerStore.open(tmp_path / "store").questions == store.questions


def test_numbers_and_codes_of_a_questions_table(write, tmp_path):
    table = tmp_path / "questions.csv"
    table.write_text("question,text,options,codes\ntea,Tea?,yes|no,1|2\n")
    assert write([(1, "tea", 2), (2, "tea", 1)], table).survey().answers_of("1") == {"tea": "no"}


def test_a_store_understands_what_the_reader_of_long_tables_understands(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    questions = tmp_path / "questions.csv"
    questions.write_text("question,text,options,codes\ntea,Tea?,yes|no,1|2\ndog,A dog?,no|yes,\n")
    rows = [("ann", "tea", 1.0), ("bob", "tea", 2.0), ("cat", "tea", None), ("eve", "tea", 99.0)]
    pd.DataFrame(rows, columns=["Respondent", "question", "ANSWER"]).to_parquet(tmp_path / "a.parquet")
    rows = [("eve", "dog", "YES"), ("cat", "dog", "Refused"), ("dan", "dog", "NA"), ("flo", "dog", "no")]
    pd.DataFrame(rows, columns=["respondent", "question", "answer"]).to_parquet(tmp_path / "b.parquet")
    store = AnswerStore.write(tmp_path, questions, tmp_path / "store", answers_per_shard=2)
    survey = store.survey()
    assert {who: survey.answers_of(who) for who in survey.respondent_ids} == {
        "ann": {"tea": "yes"},
        "bob": {"tea": "no"},
        "eve": {"dog": "yes"},
        "flo": {"dog": "no"},
    }
    whole = pd.concat([pd.read_parquet(tmp_path / f"{name}.parquet").set_axis(LONG_COLUMNS, axis=1) for name in "ab"])
    whole.astype(object).to_csv(tmp_path / "long.csv", index=False)
    read = read_long(tmp_path / "long.csv", questions)

    def told(account):
        return {n["reason"]: (n["count"], sorted(n["examples"])) for n in account["notes"]}

    ours, theirs = told(store.account), told(read.account.as_dict())
    assert ours["respondent without answers, left out"] == (2, ["cat", "dan"])
    assert ours["number apart from the scale read as missing, 99 (list it in a questions table to keep it)"] == (
        1,
        ["tea (1)"],
    )
    del theirs["number written otherwise than in the options or codes"]  # text of a CSV says 1.0, a number is 1
    theirs = {reason.replace("99.0", "99"): told for reason, told in theirs.items()}
    assert ours == theirs


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("ann", "tea", "yes"), ("bob", "tea", "maybe")], 'row 2, column answer: "maybe" is not an option.*yes | no'),
        ([("ann", "tea", "yes"), (None, "tea", "no")], "row 2, column respondent is empty"),
        ([("ann", "tea", "yes"), ("ann", "tea", "no")], 'respondent "ann" answers question "tea" more than once'),
        ([("ann", "car", "yes")], "holds no answers to any known question"),
        ([("ann", "tea", 0.5)], 'row 1, column answer: "0.5" is not an option.*yes | no'),
        ([("ann", "tea", 1.0), ("bob", "tea", np.inf)], "row 2, column answer holds an infinite number"),
        ([("ann", "tea", [1])], "column answer holds list.* values; write it as text"),
    ],
)
def test_wrong_tables_leave_nothing_behind(write, tmp_path, rows, message):
    with pytest.raises(SurveyError, match=message):
        write(rows)
    assert [p.name for p in tmp_path.iterdir()] == ["long.parquet"]


def test_rows_of_later_batches_are_counted_from_the_file(write, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    with pytest.raises(SurveyError, match='row 4, column answer: "maybe"'):
        write([("a", "tea", "no"), ("b", "tea", "no"), ("c", "tea", "no"), ("d", "tea", "maybe")])


def test_folders(write, tmp_path):
    write([("ann", "tea", "yes")])
    with pytest.raises(SurveyError, match="exists; remove it"):
        write([("ann", "tea", "yes")])
    with pytest.raises(SurveyError, match="there is no answer store in"):
        AnswerStore.open(tmp_path)
    with pytest.raises(SurveyError, match="no Parquet file at"):
        AnswerStore.write(tmp_path / "nowhere", [TEA], tmp_path / "other")
    facts = tmp_path / "store" / "store.json"
    facts.write_text(facts.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(SurveyError, match="has format 9, this version reads 1"):
        AnswerStore.open(tmp_path / "store")
