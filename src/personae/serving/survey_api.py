"""The survey's routes: cohorts, questions, the map, and what to ask next."""

from __future__ import annotations

from fastapi import APIRouter, Response

from personae.serving.directory import MINIMUM
from personae.serving.errors import ApiError, documented
from personae.serving.schemas import About, CohortCard, Cohorts, Map, NextQuestion, NextQuestionRequest, Questions
from personae.serving.service import ServiceOf

router = APIRouter(prefix="/v1", tags=["survey"])


@router.get("/about", response_model=About, responses=documented())
def about(service: ServiceOf) -> About:
    """What this server has: how many people and questions, and whether anybody can talk."""
    bundle = service.directory.bundle
    return About(
        name=bundle.folder.name,
        people=len(bundle.people),
        questions=len(bundle.people.questions_),
        language_model=service.backend is not None,
        minimum=MINIMUM,
    )


@router.get("/cohorts", response_model=Cohorts, responses=documented())
def cohorts(service: ServiceOf) -> Response:
    """The cohorts with what sets each apart; cells of few people are left out."""
    return _json(service.facts_json["cohorts"])


@router.get("/cohorts/{name}", response_model=CohortCard, responses=documented(404))
def cohort(name: str, service: ServiceOf) -> CohortCard:
    """One cohort with all its answers and traits."""
    for number, persona in enumerate(service.directory.cohorts):
        if persona.name == name:
            return service.facts.cohort_card(number, whole=True)
    raise ApiError(404, f'there is no cohort "{name}"; GET /v1/cohorts lists them', "cohort_not_found")


@router.get("/questions", response_model=Questions, responses=documented())
def questions(service: ServiceOf) -> Response:
    """The questions of the survey, with everybody's observed answers."""
    return _json(service.facts_json["questions"])


@router.get("/map", response_model=Map, responses=documented())
def map(service: ServiceOf) -> Response:
    """Where people, cohorts and trait groups are on the plane that shows most of their differences."""
    return _json(service.facts_json["map"])


@router.post("/next-question", response_model=NextQuestion, responses=documented())
def next_question(asked: NextQuestionRequest, service: ServiceOf) -> NextQuestion:
    """Where the answers so far put somebody, and the question whose answer will tell most. Nothing is kept."""
    return service.facts.next_question(asked)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
