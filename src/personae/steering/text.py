"""Baselines that need no training: the raw LM, and who somebody is said in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personae.data.survey import Question, Survey
from personae.lm.frozen import FrozenLM
from personae.lm.generation import stream
from personae.lm.prompts import Message, chat_prompt, letter_ids, letters_prompt, text_prompt
from personae.lm.reading import option_logits, prepare
from personae.people.persona import Persona
from personae.steering.base import Steerer, check_read


class TextPrompt(Steerer):
    """The LM told in plain text who it is; with no text, the raw LM.

    Parameters
    ----------
    lm : str or FrozenLM
    describe : callable, optional
        Persona to text; nothing is said by default.
    """

    method = "text"

    def __init__(self, lm: str | FrozenLM = "smollm2-135m", describe: Callable[[Persona], str] | None = None) -> None:
        self.lm = lm
        self.describe = describe

    def fit(self) -> TextPrompt:
        """Load the LM."""
        self.lm_ = self.lm if isinstance(self.lm, FrozenLM) else FrozenLM.load(self.lm)
        return self

    @torch.no_grad()
    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """See `Steerer`; people of the same description are computed once."""
        check_read(read)
        about = [self.describe(p) if self.describe else "" for p in personas]
        width = max(len(q.options) for q in questions)
        out = np.zeros((len(personas), len(questions), width), dtype=np.float32)
        predict = self.predict_letters if read == "letters" else self._predict_texts
        for text in sorted(set(about)):
            rows = [i for i, a in enumerate(about) if a == text]
            for j, p in enumerate(predict([text] * len(questions), questions)):
                out[rows, j, : len(p)] = p
        return out

    @torch.no_grad()
    def predict_letters(self, about: Sequence[str], questions: Sequence[Question]) -> list[np.ndarray]:
        """Probabilities of each question's options, to somebody described by the text beside it."""
        lm = self.lm_
        prompts = [letters_prompt(lm, q.text, q.options, "before", a) for q, a in zip(questions, about, strict=True)]
        last = prepare(lm, prompts, batch=16).representation[:, : lm.hidden_size].to(lm.dtype)
        letters = torch.tensor(letter_ids(lm, max(len(q.options) for q in questions)), device=lm.device)
        logits = lm.logits(last, letters).cpu()
        return [torch.softmax(x[: len(q.options)], -1).numpy() for x, q in zip(logits, questions, strict=True)]

    def _predict_texts(self, about: Sequence[str], questions: Sequence[Question]) -> list[np.ndarray]:
        nothing = torch.zeros(1, 1, 0, self.lm_.hidden_size, dtype=self.lm_.dtype, device=self.lm_.device)
        out = []
        for question, text in zip(questions, about, strict=True):
            prompt = text_prompt(self.lm_, question.text, question.options, "before", text)
            prepared = prepare(self.lm_, [prompt])
            logits = option_logits(self.lm_, prepared, nothing, [question.options], by="text")
            out.append(torch.softmax(logits, -1)[0, 0].cpu().numpy())
        return out

    def stream(
        self,
        messages: Sequence[Message],
        personas: Sequence[Persona],
        max_new_tokens: int = 80,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[list[str]]:
        """See `Steerer`."""
        prompts = []
        for persona in personas:
            about = self.describe(persona) if self.describe else ""
            system: list[Message] = [{"role": "system", "content": about}] if about else []
            prompts.append(chat_prompt(self.lm_, [*system, *messages], "before"))
        return stream(self.lm_, prompts, None, max_new_tokens, temperature, top_p, seeds)

    def save(self, folder: Path | str) -> None:
        """Nothing was learned, so nothing is saved."""
        raise NotImplementedError("a text prompt has nothing to save")


def traits_as_text(traits: Mapping[Any, Any]) -> str:
    """Traits in words; missing ones are left out.

    Examples
    --------
    >>> traits_as_text({"age": "30-44", "sex": "female", "town": None})
    'Answer as this person. age: 30-44; sex: female.'
    """
    said = [f"{name}: {value}" for name, value in traits.items() if isinstance(value, str) and value]
    return f"Answer as this person. {'; '.join(said)}." if said else ""


def describe_by_traits(survey: Survey) -> Callable[[Persona], str]:
    """Text of a respondent's traits, for `TextPrompt`."""
    rows = {
        str(i): traits_as_text(r) for i, r in zip(survey.traits.index, survey.traits.to_dict("records"), strict=True)
    }
    return lambda persona: rows.get(persona.name, "")
