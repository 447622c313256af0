"""personae: learn who people are from their opinions and make a frozen language model answer as any of them."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module; loaded on first use, so that `import personae` and the command line start at once.
_PUBLIC = {
    "Account": "personae.data.account",
    "SurveyError": "personae.data.account",
    "Question": "personae.data.survey",
    "Survey": "personae.data.survey",
    "read_survey": "personae.data.read",
    "load_sample": "personae.data.sample",
    "Turn": "personae.data.dialogues",
    "Dialogue": "personae.data.dialogues",
    "Dialogues": "personae.data.dialogues",
    "read_dialogues": "personae.data.read_dialogues",
    "OpinionModel": "personae.people.opinion_model",
    "PaperFactorization": "personae.people.paper_factorization",
    "Cohorts": "personae.people.cohorts",
    "Persona": "personae.people.persona",
    "FrozenLM": "personae.lm.frozen",
    "PersonaPrompt": "personae.steering.persona_prompt",
    "LoRA": "personae.steering.lora",
    "AnswerStore": "personae.scale.store",
    "fit_store": "personae.scale.als",
    "Bundle": "personae.bundle",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'personae' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
