"""/v1/personas: make, see and forget personas."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from personae.serving.errors import ApiError, documented
from personae.serving.schemas import Deleted, NewPersona, Page, PersonaCard, PersonaPage
from personae.serving.service import OwnerOf, ServiceOf

router = APIRouter(prefix="/v1/personas", tags=["personas"])


@router.post("", status_code=201, response_model=PersonaCard, responses=documented(404))
def create(asked: NewPersona, service: ServiceOf, owner: OwnerOf) -> PersonaCard:
    """Make a persona from answers, or as a blend, and remember it under an id that only its maker knows.

    It is on disk when the reply comes. The answers are not kept: only the vector that they give.
    """
    directory = service.directory
    id = directory.store.add(directory.meet(asked, owner), owner)
    stored = directory.store.get(id, owner)
    if stored is None:
        raise ApiError(404, f"{id} was deleted at once", "persona_not_found")
    return directory.card(stored.persona, created=stored.created)


@router.get("", response_model=PersonaPage, responses=documented(404))
def page(asked: Annotated[Page, Query()], service: ServiceOf, owner: OwnerOf) -> PersonaPage:
    """Personas made with this key, oldest first. GET /v1/models lists everybody else, too."""
    found = service.directory.store.page(asked.limit + 1, asked.after, owner)
    if found is None:
        raise ApiError(404, "there is no persona of this id to go on after", "persona_not_found", "after")
    cards = [service.directory.card(persona, created=created) for persona, created in found[: asked.limit]]
    return PersonaPage(data=cards, has_more=len(found) > asked.limit, last_id=cards[-1].id if cards else None)


@router.get("/{name:path}", response_model=PersonaCard, responses=documented(404))
def card(name: str, service: ServiceOf, owner: OwnerOf) -> PersonaCard:
    """What may be known of anybody: a cohort, respondent, trait group, blend, or persona made here."""
    stored = service.directory.stored(name, owner)
    if stored is not None:
        return service.directory.card(stored.persona, created=stored.created)
    return service.directory.card(service.directory.find(name, owner), id=name)


@router.delete("/{name:path}", response_model=Deleted, responses=documented(404))
def delete(name: str, service: ServiceOf, owner: OwnerOf) -> Deleted:
    """Forget a persona made here; its vector is gone from disk, too, when the reply comes."""
    if not service.directory.store.delete(name, owner):
        service.directory.find(name, owner)  # raises if there is nobody
        raise ApiError(403, f'"{name}" belongs to the bundle and cannot be deleted', "not_deletable")
    return Deleted(id=name)
