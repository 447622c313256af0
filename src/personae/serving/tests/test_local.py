from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch

from personae import OpinionModel, PersonaPrompt, Survey
from personae.data.survey import Question
from personae.lm import generation
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Prompt, plain_prompt
from personae.people.persona import Persona
from personae.serving.backend import Sampling
from personae.serving.local import LocalBackend
from personae.steering.text import TextPrompt

CHAT = [{"role": "user", "content": "Roads?"}]
LONGER = [*CHAT, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why? Roads or schools?"}]
HOW = {"temperature": 1.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def steerer(lm: FrozenLM, survey: Survey, people: OpinionModel) -> PersonaPrompt:
    return PersonaPrompt(lm, recipe="paper", placement="late", steps=3).fit(survey, people, progress=False)


def served(steerer: Any, work: Any, **limits: int) -> Any:
    """What ``work`` finds at a backend of the steerer, which is closed afterwards."""

    async def through() -> Any:
        backend = LocalBackend(steerer, **limits)
        try:
            return await work(backend)
        finally:
            await backend.close(1)

    return asyncio.run(asyncio.wait_for(through(), 120))


async def said(pieces: Any) -> str:
    return "".join([piece.text async for piece in pieces])


def alike(persona: Persona, numbers: int) -> Persona:
    return Persona("somebody else", np.ones(numbers), np.eye(numbers), 1.0)


@pytest.mark.parametrize("placement", ["late", "prefix"])
def test_replies_are_those_of_the_steerer(steerer, lm, survey, people, placement):
    if placement != steerer.placement_:
        steerer = PersonaPrompt(lm, recipe="paper", placement=placement, steps=2).fit(survey, people, progress=False)
    who = [people[name] for name in people.respondent_ids_[:3]]
    asked = [(chat, persona) for chat in (CHAT, LONGER) for persona in who]

    async def work(backend):
        tasks = [
            said(backend.chat(chat, persona, Sampling(12, seed=i, **HOW))) for i, (chat, persona) in enumerate(asked)
        ]
        return await asyncio.gather(*tasks)

    found = served(steerer, work)
    expected = [steerer.chat(chat, p, seed=i, max_new_tokens=12, **HOW) for i, (chat, p) in enumerate(asked)]
    assert [text.strip() for text in found] == expected
    assert len(set(found)) > 1


def test_a_chat_that_several_are_in_is_read_once(steerer, people, monkeypatch):
    calls = []
    chat_rows = PersonaPrompt.chat_rows

    def counted(self, messages, personas):
        calls.append(len(personas))
        return chat_rows(self, messages, personas)

    monkeypatch.setattr(PersonaPrompt, "chat_rows", counted)
    who = [people[name] for name in people.respondent_ids_[:5]]

    async def work(backend):
        return await asyncio.gather(*(said(backend.chat(CHAT, p, Sampling(3))) for p in who))

    served(steerer, work)
    assert sum(calls) == 5
    assert len(calls) <= 2  # the first may have begun alone


def test_a_text_goes_on_as_the_persona_or_as_the_lm_itself(steerer, lm, people):
    text = "A person would say so. <|im_end|> Roads"  # the name of a special token is plain text
    me = people["r0001"]

    async def work(backend):
        how = Sampling(10, seed=3, **HOW)
        return [await said(backend.complete(text, who, how)) for who in (me, None)]

    ours, plain = served(steerer, work)
    prompt = plain_prompt(lm, text, "late")
    assert lm.tokenizer.eos_token_id not in prompt.text_ids
    assert lm.tokenizer.decode(prompt.text_ids) == text
    rows = steerer.text_rows(text, [me])
    options = {"max_new_tokens": 10, "seeds": [3], **HOW}
    assert ours.strip() == generation.generate(lm, rows.prompts, rows.virtual, **options)[0]
    assert plain.strip() == generation.generate(lm, [Prompt((), prompt.before)], None, **options)[0]
    assert ours != plain


def test_a_method_that_cannot_go_on_with_a_text_says_so(lm, people):
    async def work(backend):
        await said(backend.complete("Roads", people["r0001"], Sampling(3)))

    with pytest.raises(ValueError, match=r"the method text steers answers and chats, not .* a text; use a chat"):
        served(TextPrompt(lm).fit(), work)


def test_no_text_is_refused(steerer, people):
    async def work(backend):
        await said(backend.complete("", people["r0001"], Sampling(3)))

    with pytest.raises(ValueError, match="there is no text to go on with"):
        served(steerer, work)


def test_what_is_too_long_is_refused_before_the_lm_reads_it(steerer, people, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(PersonaPrompt, "chat_rows", never)

    async def work(backend):
        long = [{"role": "user", "content": "Roads? " * 600}]
        await said(backend.chat(long, people["r0001"], Sampling(3)))

    with pytest.raises(ValueError, match=r"has \d+ tokens and 1 may follow, but tiny-llama reads at most 512"):
        served(steerer, work)


def test_a_persona_of_another_model_harms_nobody_else(steerer, people):
    me = people["r0001"]

    async def work(backend):
        wrong = alike(me, 99)
        return await asyncio.gather(
            *(said(backend.chat(CHAT, who, Sampling(8, seed=1, **HOW))) for who in (me, wrong, me)),
            return_exceptions=True,
        )

    first, error, third = served(steerer, work)
    assert isinstance(error, ValueError)
    assert "has 99 numbers" in str(error)
    assert first == third
    assert first.strip() == steerer.chat(CHAT, me, seed=1, max_new_tokens=8, **HOW)


@pytest.mark.parametrize("read", ["letters", "text"])
def test_answers_come_in_blocks_of_questions_and_are_the_librarys(steerer, survey, people, read):
    everybody = [people[name] for name in people.respondent_ids_[:70]]
    questions = [*survey.questions[:18], Question("asked", "Roads?", ("none", "few", "some", "many"))]

    async def work(backend):
        return [block async for block in backend.answers(everybody, questions, read)]

    blocks = served(steerer, work)
    assert [block.shape for block in blocks] == [(70, 16, 4), (70, 3, 4)]
    found = np.concatenate(blocks, 1)
    np.testing.assert_allclose(found, steerer.predict_proba(everybody, questions, read), atol=1e-5)
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-5)


def test_any_steerer_answers_in_parts(lm, survey, people):
    told = TextPrompt(lm, lambda persona, question: f"I am {persona.name}.").fit()
    everybody = [people[name] for name in people.respondent_ids_[:18]]

    async def work(backend):
        return [block async for block in backend.answers(everybody, survey.questions[:2])]

    (block,) = served(told, work)
    np.testing.assert_allclose(block, told.predict_proba(everybody, survey.questions[:2]), atol=1e-5)


@pytest.mark.parametrize(
    ("n", "read", "sentence"),
    [(1, "colours", 'by "letters" or by "text", not by "colours"'), (0, "letters", "at least one persona")],
)
def test_wrong_calls_for_answers_are_refused(steerer, survey, people, n, read, sentence):
    async def work(backend):
        await anext(backend.answers([people["r0001"]] * n, survey.questions[:1], read))

    with pytest.raises(ValueError, match=sentence):
        served(steerer, work)


def test_who_leaves_ends_the_work_on_answers(steerer, survey, people, monkeypatch):
    parts = []
    predict_parts = PersonaPrompt.predict_parts

    def counted(self, *asked):
        for part in predict_parts(self, *asked):
            parts.append(part)
            yield part

    monkeypatch.setattr(PersonaPrompt, "predict_parts", counted)
    everybody = [people[name] for name in people.respondent_ids_[:200]]

    async def work(backend):
        async with aclosing(backend.answers(everybody, survey.questions * 4)) as blocks:
            await anext(blocks)
        counts = []
        for _ in range(2):  # a part may be under way when they leave; after a reply it is over
            await said(backend.chat(CHAT, everybody[0], Sampling(5)))
            counts.append(len(parts))
        return counts

    first, second = served(steerer, work)
    assert first == second
    assert sum(len(everybody[rows]) * len(columns) for rows, columns, _ in parts) < 200 * 4 * 18


def test_a_steerer_that_mixes_prompts_is_refused_with_a_way_out(lm, people, monkeypatch):
    told = TextPrompt(lm).fit()
    rows = told.chat_rows(CHAT, [people["r0001"]])
    monkeypatch.setattr(told, "chat_rows", lambda *_: rows._replace(mixed=torch.zeros(1, 1)))

    async def work(backend):
        await said(backend.chat(CHAT, people["r0001"], Sampling(3)))

    with pytest.raises(ValueError, match='open it with selection="hard"'):
        served(told, work)
