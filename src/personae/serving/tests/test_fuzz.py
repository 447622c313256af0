"""Every route against the OpenAPI document: no failure of the server, no undocumented reply, no hang."""

from __future__ import annotations

import hashlib
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from personae.serving.app import create_app
from personae.serving.directory import model_of
from personae.serving.guard import Rules
from personae.serving.keys import Keys
from personae.serving.store import PersonaStore
from personae.serving.tests.conftest import Echo

_EXAMPLES = int(os.environ.get("PERSONAE_FUZZ", "15"))  # a route and kind of request; more by hand
_BEYOND = [positive_data_acceptance]  # the document cannot say "exactly one of these" or "a question of the survey"


@pytest.fixture(scope="module")
def headers() -> dict[str, str]:
    return {"Authorization": "Bearer pk-fuzz"}


@pytest.fixture(scope="module")
def document(bundle, headers, tmp_path_factory):
    hashes = {"fuzzer": hashlib.sha256(b"pk-fuzz").hexdigest()}
    store = PersonaStore(f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/personas.sqlite", model_of(bundle))
    app = create_app(bundle, store, Echo(), Rules(Keys(hashes), hosts=None, rate="1000000/second"))
    yield schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    store.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_route(document, headers, mode):
    asked = []
    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
            continue  # nothing to get wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=_EXAMPLES,
            deadline=20_000,  # milliseconds
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=headers, excluded_checks=_BEYOND)

        ask()
        asked.append(operation.label)
    assert len(asked) >= (15 if mode is GenerationMode.POSITIVE else 10)
