"""The table of conversations on a tiny random LM: every row is trained, read and replied with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.evaluation import converse as module
from personae.evaluation.converse import converse
from personae.evaluation.talk_plan import compared, make_talk_plan, passes
from personae.evaluation.talk_rows import TALK_ROWS, Plain, Trained, read_in_parts, talk_rows
from personae.evaluation.talk_table import Measured, choice_table, score, use_table
from personae.lm.prompts import chat_prompt, reply_ids
from personae.lm.reading import prepare
from personae.lm.tiny import tiny_lm
from personae.steering.selective import Selective
from personae.steering.turns import as_messages

PERSONAS = ["i like tea .", "i like dogs .", "i have a cat .", "i am old ."]
SMALL = {"steps": 2, "n_prompts": 2, "n_tokens": 2, "new_tokens": 4, "progress": False}


def talk(i: int) -> Dialogue:
    turns = (Turn("b", f"hello {i} ?"), Turn("a", "tea please ." if i % 2 else "my dog !"), Turn("b", "and ?"))
    return Dialogue(str(i), (*turns, Turn("a", f"more {i}")), {"a": (PERSONAS[i % 4],)})


@pytest.fixture(scope="module")
def dialogues() -> Dialogues:
    return Dialogues([talk(i) for i in range(24)])


@pytest.fixture(scope="module")
def plan(dialogues):
    return make_talk_plan(dialogues, held_out=0.25, replies=6, swapped=6)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("converse")


@pytest.fixture(scope="module")
def found(plan, lm, folder):
    return converse(plan, folder, lm=lm, **SMALL)


# the plan --------------------------------------------------------------------------------------------------------
def test_nothing_that_is_examined_is_learned_from(dialogues):
    test, choices = (make_talk_plan(dialogues, part=part, held_out=0.25) for part in ("test", "choices"))
    learned, tested, chosen = (
        {d.id for d in test.train},
        {e.dialogue for e in test.examples},
        {e.dialogue for e in choices.examples},
    )
    assert learned | tested | chosen == {d.id for d in dialogues}
    assert not learned & tested
    assert not (learned | tested) & chosen
    assert {d.id for d in choices.train} == learned
    assert test.fingerprint != choices.fingerprint


def test_a_test_file_of_its_own_leaves_more_to_learn_from(dialogues):
    test = Dialogues([talk(i) for i in range(100, 108)])
    plan = make_talk_plan(dialogues, test, held_out=0.25)
    assert len(plan.train) == 18
    assert {e.dialogue for e in plan.examples} == {d.id for d in test}


def test_a_smaller_sample_is_part_of_a_larger_one_and_ends_with_a_dialogue(dialogues):
    large = make_talk_plan(dialogues, held_out=0.25)
    small = large.sample(contexts=3, swapped=1, replies=4)
    assert (small.contexts, small.swapped, small.spoken) == (4, 2, large.spoken[:4])
    assert small.fingerprint == large.fingerprint
    assert [[e.dialogue for e in large.examples[p]] for p in passes(large.examples, 1)] == [
        [large.examples[i].dialogue] * 2 for i in range(0, 12, 2)
    ]
    assert list(passes(large.examples, 4)) == [slice(0, 8), slice(8, 12)]


def test_no_more_is_read_with_somebody_elses_persona_than_with_the_own(dialogues):
    large = make_talk_plan(dialogues, held_out=0.25)
    assert large.swapped > 4
    assert large.sample(contexts=3, swapped=1000, replies=4).swapped == 4
    assert make_talk_plan(dialogues, held_out=0.25, contexts=3).swapped == 4  # of 1000 by default


def test_fewer_contexts_than_swapped_are_scored(dialogues, lm, tmp_path):
    plan = make_talk_plan(dialogues, held_out=0.25, contexts=3, replies=6)
    found = converse(plan, tmp_path, ["raw LM", "persona as text"], lm=lm, **SMALL)
    assert (found["sizes"]["contexts"], found["sizes"]["swapped"]) == (4, 4)
    assert ("persona as text", "persona_gap") in {(line["row"], line["metric"]) for line in found["table"]}


def test_other_words_of_the_partner_are_another_plan(dialogues):
    def test_part(question: str) -> Dialogues:
        some = [talk(i) for i in range(100, 108)]
        return Dialogues([Dialogue(d.id, (Turn("b", question), *d.turns[1:]), d.personas) for d in some])

    plans = [make_talk_plan(dialogues, test_part(words), held_out=0.25) for words in ("hello ?", "hello ?", "hullo ?")]
    assert plans[0].fingerprint == plans[1].fingerprint != plans[2].fingerprint


def test_strangers_are_other_people(plan):
    for example in plan.examples:
        stranger = plan.stranger(example)
        assert stranger.persona != example.persona
        assert stranger.persona in plan.strangers
        assert stranger.reply == example.reply


def test_too_few_dialogues_for_the_anchors_are_said_before_anything_is_trained(dialogues):
    with pytest.raises(ValueError, match="more than half the turns are of one dialogue"):
        make_talk_plan(dialogues, Dialogues([talk(100), Dialogue("x", (Turn("a", "hi"),), {"a": ("y",)})]))


def test_who_spoke_last_is_the_partner():
    said = (Turn("b", "hi"), Turn("a", "ho"))
    dialogues = Dialogues([Dialogue(str(i), (*said, Turn("a", "and"), Turn("b", "so")), {"a": ("x",)}) for i in "12"])
    assert compared(dialogues.examples()).partner == ["hi", "", "hi", ""]


# what is read ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tuned", [None, ("LoRA", 8), ("fine-tuning of all weights", None)])
def test_a_plain_lm_reads_what_one_pass_of_it_says(found, folder, lm, plan, tuned):
    speaker = Trained(plan, lm, folder / "steerers").fine_tuned(*tuned) if tuned else Plain(lm)
    lm, some = speaker.lm, plan.examples[:5]
    prompts = [chat_prompt(lm, as_messages(e), "late") for e in some]
    replies = [reply_ids(lm, e.reply) for e in some[:4]] + [[7]]  # one of a single token
    with torch.no_grad():
        nll = read_in_parts(speaker, prepare(lm, prompts), replies).nll
        for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            ids = torch.tensor([[*prompt.text_ids, *reply]])
            log_p = lm.model(input_ids=ids).logits[0].log_softmax(-1)[len(prompt.text_ids) - 1 : -1]
            assert nll[i].item() == pytest.approx(-log_p[torch.arange(len(reply)), reply].sum().item(), rel=1e-3)


@pytest.mark.parametrize("name", ["SPT", "SPT, mixed", "SPT, before", "SPT, as published, before", "P-tuning"])
def test_what_is_kept_of_a_bank_is_what_the_steerer_says(found, folder, plan, lm, name):
    own = pd.read_parquet(next((folder / "own" / name.lower().replace(", ", "-").replace(" ", "-")).iterdir()))
    steerer = Selective.load(folder / "steerers" / name.lower().replace(", ", "-").replace(" ", "-"), lm)
    assert steerer.selection == ("mixture" if name == "SPT, mixed" else "hard")
    chats = [as_messages(e) for e in plan.examples]
    nll, tokens = steerer.nll(chats, [e.reply for e in plan.examples])
    np.testing.assert_allclose(own["nll"], nll, rtol=1e-3)
    assert own["tokens"].tolist() == tokens.tolist()
    if name == "P-tuning":
        assert "p0" not in own
        return
    p = steerer.choose(chats)
    np.testing.assert_allclose(own[["p0", "p1"]], p, atol=1e-4)
    assert ("prompt" in own) == (name != "SPT, mixed")


def test_a_reply_is_the_steerers_own(found, folder, plan, lm):
    spoken = pd.read_parquet(folder / "spoken" / "spt" / "0000.parquet")
    steerer = Selective.load(folder / "steerers" / "spt", lm)
    for i, text in zip(spoken["example"], spoken["text"], strict=True):
        assert steerer.chat(as_messages(plan.examples[i]), max_new_tokens=4) == text
    assert spoken["example"].tolist() == sorted(plan.spoken)


def test_the_raw_lm_is_told_no_persona_and_examples_are_shown_before_it(plan, lm, tmp_path):
    trained = Trained(plan, lm, tmp_path)
    example = plan.examples[0]
    told = {name: TALK_ROWS[name].told(trained, example) for name in ("raw LM", "persona as text")}
    assert told["raw LM"] == told["persona as text"][1:]
    shown = TALK_ROWS["example dialogues in the context"].told(trained, example)
    assert shown[0]["content"].endswith(example.persona[0])
    assert shown[0]["content"].count("They: hello") == 2
    assert shown[1:] == told["raw LM"]
    some = [d for d in plan.train if f"You: {d.turns[3].text}" in shown[0]["content"]]
    assert len(some) == 2  # of the training part


# the tables ------------------------------------------------------------------------------------------------------
def test_every_row_is_there_with_its_anchors(found):
    rows = {line["row"] for line in found["table"]}
    assert rows == {*TALK_ROWS, "human", "constant", "copy", "random"}
    value = {(line["row"], line["metric"]): line["estimate"] for line in found["table"]}
    assert value["human", "f1"] == 1
    assert all(value[row, "nll"] > 0 and 0 <= value[row, "stopped"] <= 1 for row in TALK_ROWS)
    assert all((row, "persona_gap") in value for row in TALK_ROWS if row != "raw LM")
    assert ("raw LM", "persona_gap") not in value
    banks = {"K prompts, one at random", "K prompts, mixed evenly"} | {r for r in TALK_ROWS if r.startswith("SPT")}
    assert found["prompts"].keys() == banks
    assert found["prompts"]["K prompts, mixed evenly"]["share"] == pytest.approx([0.5, 0.5])


def test_files(found, folder):
    saved = json.loads((folder / "result.json").read_text())
    assert saved["table"] == found["table"]
    assert {"identity", "settings", "sizes", "machine", "training", "differences"} <= saved.keys()
    assert saved["training"]["SPT"][-1]["step"] == 2
    assert saved["training"]["raw LM"] == []
    page = (folder / "result.md").read_text()
    assert "| SPT, as published, before |" in page
    assert "## Less prompt tuning, K x n tokens" in page
    assert (folder / "conversations.png").exists()


def test_replies_side_by_side(found, folder, plan):
    """Of each context what was said, and the true and everybody's reply."""
    pages = (folder / "replies.txt").read_text().split("\n--- ")
    assert len(pages) == 1 + len(plan.spoken)
    spoken = pd.read_parquet(folder / "spoken" / "spt" / "0000.parquet").set_index("example")["text"]
    for page, i in zip(pages[1:], plan.spoken, strict=True):
        said = {name.rstrip(): text for line in page.splitlines() for name, _, text in [line.partition("  ")]}
        assert said["persona"].strip() == " ".join(plan.examples[i].persona)
        assert said["they"].strip() == plan.examples[i].history[-1].text
        assert said["human"].strip() == plan.examples[i].reply
        assert said["SPT"].strip() == " ".join(spoken[i].split())
        assert said.keys() >= TALK_ROWS.keys()


def test_what_is_finished_is_not_done_again(found, folder, plan, lm, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("_read", "_speak"):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr(Selective, "fit", forbidden)
    again = converse(plan, folder, ["SPT", "LoRA"], lm=lm, **SMALL)
    assert again["table"] == found["table"]
    with pytest.raises(ValueError, match="another evaluation \\(steps differ\\)"):
        converse(plan, folder, lm=lm, **{**SMALL, "steps": 3})


def test_a_context_is_computed_once_for_all_rows_to_read_there_and_to_reply(plan, lm, tmp_path, monkeypatch):
    computed = []

    def counted(lm: object, prompts: tuple[object, ...]) -> object:
        computed.extend(prompts)
        return prepare(lm, prompts)

    monkeypatch.setattr(module, "prepare", counted)
    converse(plan, tmp_path, ["persona as text", "deep prompt, n tokens"], lm=lm, **SMALL)
    assert len(computed) == plan.contexts + plan.swapped


def test_drawn_replies_stand_beside_the_greedy_ones(found, folder, plan, lm, monkeypatch):
    monkeypatch.setattr(Selective, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("personae.evaluation.converse._read", lambda *a, **k: pytest.fail("read again"))
    drawn = converse(plan, folder, ["persona as text", "SPT"], lm, temperature=1.5, top_p=0.9, **SMALL)
    assert drawn["settings"]["temperature"] == 1.5
    assert "6 replies drawn at temperature 1.5 (top-p 0.9)" in (folder / "result.md").read_text()
    assert {line["row"] for line in drawn["table"]} >= {"human", "persona as text", "SPT"}
    said, before = (
        pd.concat(map(pd.read_parquet, sorted((folder / kind / "spt").iterdir())))
        for kind in ("drawn-1.5-0.9", "spoken")
    )
    assert said["example"].tolist() == before["example"].tolist()
    assert said["text"].tolist() != before["text"].tolist()
    monkeypatch.setattr("personae.evaluation.converse._speak", lambda *a, **k: pytest.fail("spoken again"))
    assert converse(plan, folder, lm=lm, **SMALL)["table"] == found["table"]  # all greedy replies are still there


def test_a_row_that_is_added_stands_beside_the_others(plan, lm, tmp_path):
    first = converse(plan, tmp_path, ["raw LM"], lm=lm, **SMALL)
    both = converse(plan, tmp_path, ["persona as text"], lm=lm, **SMALL)
    assert {line["row"] for line in first["table"]} - {"human", "constant", "copy", "random"} == {"raw LM"}
    assert {line["row"] for line in both["table"]} > {"raw LM", "persona as text"}
    of_raw = [line for line in both["table"] if line["row"] == "raw LM"]
    assert [line for line in of_raw if line["metric"] == "nll"] == [
        line for line in first["table"] if line["row"] == "raw LM" and line["metric"] == "nll"
    ]
    (less,) = [d for d in both["differences"] if d["metric"] == "nll"]
    assert (less["row"], less["minus"]) == ("raw LM", "persona as text")


def test_a_larger_plan_adds_what_is_missing_to_what_a_smaller_one_measured(dialogues, lm, tmp_path, monkeypatch):
    made: list[int] = []
    speak = module._speak

    def watched(speaker: object, places: list[int], *args: object) -> pd.DataFrame:
        made.extend(places)
        return speak(speaker, places, *args)

    small, large = (make_talk_plan(dialogues, held_out=0.5, replies=n) for n in (5, 12))
    first = converse(small, tmp_path / "both", ["raw LM"], lm=lm, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_speak", watched)
        patch.setattr(module, "_read", lambda *a, **k: pytest.fail("read again"))
        both = converse(large, tmp_path / "both", ["raw LM"], lm=lm, **SMALL)
        again = converse(small, tmp_path / "both", ["raw LM"], lm=lm, **SMALL)
    assert sorted(made) == sorted(set(large.spoken) - set(small.spoken))
    assert len(made) == 7
    assert again["table"] == first["table"]
    assert both["table"] == converse(large, tmp_path / "fresh", ["raw LM"], lm=lm, **SMALL)["table"]


def test_a_budget_picks_the_sample_once_and_says_so(dialogues, lm, tmp_path, monkeypatch):
    plan = make_talk_plan(dialogues, held_out=0.5, replies=10)
    said: list[str] = []
    found = converse(plan, tmp_path, ["raw LM"], lm=lm, budget=1e-5, say=said.append, **SMALL)
    assert any("minutes" in text and "%" in text for text in said)
    assert (found["sizes"]["contexts"], found["sizes"]["replies"]) == (8, 10)  # four dialogues and a batch, the least
    times = len(said)
    again = converse(plan, tmp_path, ["raw LM"], lm=lm, budget=1e-5, say=said.append, **SMALL)
    assert (again["sizes"], len(said)) == (found["sizes"], times)  # nothing was measured again
    more = converse(plan, tmp_path, ["raw LM"], lm=lm, budget=1000, **SMALL)
    assert more["sizes"]["contexts"] == plan.contexts > 8
    larger = make_talk_plan(dialogues, held_out=0.5, replies=12)
    assert converse(larger, tmp_path, ["raw LM"], lm=lm, budget=1000, **SMALL)["sizes"]["replies"] == 12


def test_dialogues_without_personas(lm, tmp_path):
    bare = Dialogues([Dialogue(d.id, d.turns) for d in (talk(i) for i in range(16))])
    plan = make_talk_plan(bare, held_out=0.25, replies=6)
    found = converse(plan, tmp_path, ["raw LM", "persona as text", "SPT"], lm=lm, **SMALL)
    rows = {line["row"] for line in found["table"]}
    assert {"raw LM", "SPT"} < rows
    assert "persona as text" not in rows  # which would be the raw LM
    assert "persona_gap" not in {line["metric"] for line in found["table"]}


def test_an_unknown_row_is_named(plan):
    with pytest.raises(ValueError, match='no row "SPTT"; there are: SPT'):
        talk_rows(plan, ["SPTT"])


def test_differences_by_hand(plan):
    """Row a is one nat a token less likely than the reference, in every reply."""
    n = len(plan.examples)
    tokens = np.arange(1, n + 1)

    def measured(nll: np.ndarray, text: str) -> Measured:
        own = pd.DataFrame({"example": range(n), "nll": nll, "tokens": tokens})
        spoken = pd.DataFrame({"example": plan.spoken, "text": text, "stopped": True})
        return Measured(own, spoken, own.iloc[: plan.swapped].assign(nll=lambda t: t["nll"] + 2 * t["tokens"]))

    rows = {"a": measured(2.0 * tokens, "more 1"), "persona as text": measured(1.0 * tokens, "no")}
    found = score(plan, rows)
    of = {d["metric"]: d for d in found["differences"]}
    assert [of["nll"][k] for k in ("estimate", "low", "high")] == pytest.approx([1, 1, 1])
    assert of["persona_gap"]["estimate"] == pytest.approx(0)
    assert of["length"]["estimate"] == 1
    assert of["dist_1"]["ratio"] == pytest.approx(2 / 12 / (1 / 6))
    table = {(line["row"], line["metric"]): line["estimate"] for line in found["table"]}
    assert table["a", "persona_gap"] == pytest.approx(2)
    assert table["a", "perplexity"] == pytest.approx(np.exp(2))
    assert found["prompts"] == {}


def test_the_table_says_what_there_is_to_choose(plan):
    n = len(plan.examples)
    own = pd.DataFrame({"example": range(n), "nll": 3.0, "tokens": 2, "p0": 0.6, "p1": 0.4, "nll0": 4.0, "nll1": 2.0})
    spoken = pd.DataFrame({"example": plan.spoken, "text": "a b", "stopped": True})
    use = score(plan, {"a": Measured(own, spoken, None)})["prompts"]
    assert use["a"]["choice"] == {"random": 1.5, "chosen": 2, "best": 1, "agrees": 0, "commonest": 1}
    assert choice_table(use)[1] == [["a", "1.500", "2.000", "1.000", "0", "100"]]
    assert choice_table({"hard": {}})[1] == []


def test_a_bank_that_uses_one_prompt_is_one_however_undecided(plan):
    n = len(plan.examples)
    own = pd.DataFrame({"example": range(n), "nll": 1.0, "tokens": 1, "p0": 0.51, "p1": 0.49, "prompt": 0})
    spoken = pd.DataFrame({"example": plan.spoken, "text": "a b", "stopped": True})
    uses = score(plan, {"a": Measured(own, spoken, None)})["prompts"]
    use = uses["a"]
    assert use["collapsed"]
    alive = {**use, "collapsed": False}
    assert [line[-1] for line in use_table({"a": use, "b": alive})[1]] == ["one prompt", ""]
    assert use_table({"b": alive})[0][-1] == "p"
    assert use["share"] == [1, 0]
    assert use["undecided"] == pytest.approx(np.log(2), abs=1e-3)
