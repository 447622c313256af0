"""POST /v1/answers: personas x questions to option probabilities, streamed as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from personae.data.survey import Question
from personae.people.opinion_model import OpinionModel
from personae.people.persona import Persona
from personae.serving.errors import ApiError, as_api_error, documented
from personae.serving.schemas import AnswerLine, AnswersRequest, QuestionSpec
from personae.serving.service import OwnerOf, Service, ServiceOf, begun, in_time

router = APIRouter(prefix="/v1", tags=["people"])
_LINES = "application/x-ndjson"
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
_BLOCK = 20_000  # answers of the opinion model computed at a time


@router.post(
    "/answers",
    response_class=Response,
    responses=documented(404, 503, 504)
    | {200: {"model": AnswerLine, "description": "A line an answer, and a last one.", "content": {_LINES: {}}}},
)
async def answers(asked: AnswersRequest, request: Request, service: ServiceOf, owner: OwnerOf) -> Response:
    """What would they answer?

    The reply is a stream of JSON lines, one an answer (`AnswerLine`), questions in the order asked and within a
    question the personas. The last line is `{"done": true, "answers": N}`, or `{"error": {...}}` where something broke
    off the stream: a stream without either is incomplete. These are predictions of a model, of respondents too.
    """
    end = time.monotonic() + service.deadline
    by, personas, questions = await run_in_threadpool(_understood, asked, service, owner, end)
    if by == "lm":
        blocks = service.speaker().answers(personas, questions, asked.read)
    else:
        blocks = _opinion_model(service.directory.bundle.people, personas, [q.id for q in questions])
    timed = await begun(request, in_time(blocks, end - time.monotonic()))
    names = [who if isinstance(who, str) else p.name for who, p in zip(asked.personas, personas, strict=True)]
    return StreamingResponse(_lines(timed, names, questions, by, service), media_type=_LINES)


def _understood(
    asked: AnswersRequest, service: Service, owner: str, end: float
) -> tuple[str, list[Persona], list[Question]]:
    """Who computes, who is asked and what; ``TimeoutError`` once the clock says ``end``."""
    by = asked.by or ("lm" if service.backend is not None else "opinion model")
    known = {q.id: q for q in service.directory.bundle.people.questions_}
    questions = []
    for i, question in enumerate(asked.questions):
        if isinstance(question, QuestionSpec):
            if by == "opinion model":
                sentence = "the opinion model answers the survey's own questions; a new one needs a language model"
                raise ApiError(400, sentence, "no_language_model", f"questions.{i}")
            name = question.id or question.text
            questions.append(Question(name, question.text, tuple(question.options)))
        elif question in known:
            questions.append(known[question])
        else:
            service.directory.bundle.people.question_index(question)  # raises and names the nearest ones
    personas = []
    for persona in service.directory.meet_all(asked.personas, owner):
        if time.monotonic() > end:  # a thread cannot be cancelled: it has to look
            raise TimeoutError
        personas.append(persona)
    return by, personas, questions


async def _opinion_model(
    people: OpinionModel, personas: Sequence[Persona], questions: Sequence[str]
) -> AsyncGenerator[np.ndarray, None]:
    """As `Backend.answers`."""
    step = max(1, _BLOCK // len(personas))
    for start in range(0, len(questions), step):
        yield await run_in_threadpool(people.predict_proba, personas, questions[start : start + step])


async def _lines(
    blocks: AsyncGenerator[np.ndarray, None],
    names: Sequence[str],
    questions: Sequence[Question],
    by: str,
    service: Service,
) -> AsyncIterator[str]:
    done = 0
    async with aclosing(blocks):
        try:
            async for block in blocks:
                yield await run_in_threadpool(_block, block, done, names, questions, by)
                done += block.shape[1]
                service.metrics.answers.labels(by).inc(block.shape[0] * block.shape[1])
            yield _encode({"done": True, "answers": done * len(names)}) + "\n"
        except Exception as error:
            yield _encode(as_api_error(error).body()) + "\n"


def _block(block: np.ndarray, start: int, names: Sequence[str], questions: Sequence[Question], by: str) -> str:
    """Lines of probabilities (P, q, K)."""
    lines = []
    for j, question in enumerate(questions[start : start + block.shape[1]]):
        p = np.round(block[:, j, : len(question.options)].astype(float), 6).tolist()
        for i, name in enumerate(names):
            line = {
                "persona": name,
                "persona_index": i,
                "question": question.id,
                "question_index": start + j,
                "by": by,
                "probabilities": dict(zip(question.options, p[i], strict=True)),
            }
            lines.append(_encode(line))
    return "\n".join(lines) + "\n"
