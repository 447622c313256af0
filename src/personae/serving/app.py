"""`create_app`: the server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

import personae
from personae.bundle import Bundle
from personae.serving import answers_api, openai_api, personas_api, survey_api
from personae.serving.backend import Backend
from personae.serving.directory import Directory
from personae.serving.errors import documented, install
from personae.serving.guard import HEALTH, Guard, Rules
from personae.serving.metrics import Metrics
from personae.serving.page import mount_page
from personae.serving.schemas import Health
from personae.serving.service import Service, ServiceOf
from personae.serving.store import PersonaStore
from personae.serving.survey_facts import SurveyFacts

_ABOUT = """Talk with the personas of a survey, and ask them anything.

The routes of OpenAI work with its clients: give a persona as `model`, or in `persona`. What is answered here are
predictions of a model. No answer that a person gave is served, and no figure of fewer than ten people."""


def create_app(
    bundle: Bundle,
    store: PersonaStore,
    backend: Backend | None = None,
    rules: Rules | None = None,
    deadline: float = 120.0,
    grace: float = 10.0,
) -> FastAPI:
    """The server of a bundle.

    Parameters
    ----------
    bundle : Bundle
    store : PersonaStore
        Of personas made while it runs; closed at the end.
    backend : Backend, optional
        Who speaks; without, only the opinion model answers. Closed at the end.
    rules : Rules, optional
        Who may ask how often; without keys and for loopback names by default.
    deadline : float
        Seconds that one request may take.
    grace : float
        Seconds that running replies have to end when the server stops.

    Examples
    --------
    >>> import tempfile
    >>> from fastapi.testclient import TestClient
    >>> from personae import Cohorts, OpinionModel, load_sample
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> folder = tempfile.mkdtemp()
    >>> bundle = Bundle.write(f"{folder}/gss", people, Cohorts(k=2).fit(people, survey))
    >>> app = create_app(bundle, PersonaStore(f"sqlite:///{folder}/personas.sqlite", "m"))
    >>> with TestClient(app, base_url="http://localhost") as client:
    ...     client.get("/v1/personas/cohort-0").json()["kind"]
    'cohort'
    """
    metrics = Metrics(None if backend is None else backend.load)
    directory = Directory(bundle, store)
    service = Service(directory, SurveyFacts(directory), backend, metrics, deadline)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if backend is not None:
            await backend.close(grace)
        store.close()

    app = FastAPI(
        title="personae",
        version=personae.__version__,
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    install(app)
    for api in (openai_api, answers_api, personas_api, survey_api):
        app.include_router(api.router)

    @app.get(HEALTH, response_model=Health, tags=["server"], responses={503: {"model": Health}})
    def health(service: ServiceOf, response: Response) -> Health:
        """Is it alive? Needs no key."""
        alive = service.backend is None or service.backend.load().get("alive", 1) > 0
        response.status_code = 200 if alive else 503
        return Health(status="ok" if alive else "failing")

    @app.get("/metrics", tags=["server"], response_class=Response, responses=documented() | {200: _PROMETHEUS})
    def numbers(service: ServiceOf) -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    mount_page(app)
    rules = rules or Rules()
    app.add_middleware(Guard, rules=rules, metrics=metrics)
    if rules.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=["*"])
    app.openapi = lambda: _document(app, rules.keys is not None)  # type: ignore[method-assign]
    return app


_PROMETHEUS = {"content": {"text/plain": {"schema": {"type": "string"}}}}


def _document(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document: with keys, if any, and without the framework's own error, which no route answers."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, methods in document["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if with_keys and path != HEALTH:
                    operation["security"] = [{"key": []}]
        components = document["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        if with_keys:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema
