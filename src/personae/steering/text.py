"""Baselines that need no training: the raw LM, and who somebody is said in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch

from personae.data.survey import Question, Survey
from personae.lm.encoder import SentenceEncoder
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, chat_prompt, letter_ids, letters_prompt, text_prompt
from personae.lm.reading import option_logits, prepare
from personae.people.persona import Persona
from personae.steering.base import ChatRows, Steerer, check_read

if TYPE_CHECKING:
    from personae.people.opinion_model import OpinionModel

Describe = Callable[[Persona, Question | None], str]
"""What the LM is told of a persona who is asked a question, None in a chat."""

_QUESTION_CHARACTERS, _OPTION_CHARACTERS = 160, 60


def every_different(
    wanted: Sequence[tuple[str, Question]],
    predict: Callable[[Sequence[str], Sequence[Question]], Sequence[np.ndarray]],
) -> np.ndarray:
    """Probabilities (n, K) of each (description, question), zero beyond a question's own options; what is wanted more
    than once is asked once."""
    different = list(dict.fromkeys(wanted))
    found = dict(zip(different, predict([about for about, _ in different], [q for _, q in different]), strict=True))
    out = np.zeros((len(wanted), max(len(q.options) for _, q in different)), dtype=np.float32)
    for row, pair in zip(out, wanted, strict=True):
        row[: len(found[pair])] = found[pair]
    return out


def nothing(persona: Persona, question: Question | None) -> str:
    """Of nobody anything: the raw LM."""
    return ""


class TextPrompt(Steerer):
    """The LM told in plain text who it is; with no text, the raw LM.

    Parameters
    ----------
    lm : str or FrozenLM
    describe : callable
        From a persona and the question asked (None in a chat) to a text: `nothing`, what `describe_by_traits` returns,
        `SimilarAnswers`, or one's own.
    """

    method = "text"

    def __init__(self, lm: str | FrozenLM = "smollm2-135m", describe: Describe = nothing) -> None:
        self.lm = lm
        self.describe = describe

    def fit(
        self,
        survey: Survey | None = None,
        people: OpinionModel | None = None,
        checkpoint: Path | str | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> TextPrompt:
        """Load the LM. Nothing is learned: the arguments are those of every steerer, and none is read."""
        self.lm_ = self.lm if isinstance(self.lm, FrozenLM) else FrozenLM.load(self.lm)
        return self

    @torch.no_grad()
    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """See `Steerer`; people of the same description are computed once."""
        check_read(read)
        if not personas:
            raise ValueError("nobody is asked; give at least one persona")
        wanted = [(self.describe(p, q), q) for p in personas for q in questions]
        p = every_different(wanted, self.predict_letters if read == "letters" else self._predict_texts)
        return p.reshape(len(personas), len(questions), -1)

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
        no_tokens = torch.zeros(1, 1, 0, self.lm_.hidden_size, dtype=self.lm_.dtype, device=self.lm_.device)
        out = []
        for question, text in zip(questions, about, strict=True):
            prompt = text_prompt(self.lm_, question.text, question.options, "before", text)
            prepared = prepare(self.lm_, [prompt])
            logits = option_logits(self.lm_, prepared, no_tokens, [question.options], by="text")
            out.append(torch.softmax(logits, -1)[0, 0].cpu().numpy())
        return out

    def chat_rows(self, messages: Sequence[Message], personas: Sequence[Persona]) -> ChatRows:
        """See `Steerer`; the description is the chat's system message."""
        if not personas:
            raise ValueError("nobody is asked; give at least one persona")
        prompts = []
        for persona in personas:
            about = self.describe(persona, None)
            system: list[Message] = [{"role": "system", "content": about}] if about else []
            prompts.append(chat_prompt(self.lm_, [*system, *messages], "before"))
        return ChatRows(prompts, None)

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


class _WithTraits(Protocol):
    @property
    def traits(self) -> pd.DataFrame: ...


def describe_by_traits(survey: _WithTraits) -> Describe:
    """Text of a respondent's traits, for `TextPrompt`; of a `Survey`, or of what else has its table of traits."""
    traits = survey.traits
    rows = {str(i): traits_as_text(r) for i, r in zip(traits.index, traits.to_dict("records"), strict=True)}
    return lambda persona, question: rows.get(persona.name, "")


class SimilarAnswers:
    """What a person said to the questions that are most like the one asked, for `TextPrompt`.

    Nothing is said of somebody who is not in the survey or gave no other answer, nor in a chat, which asks no question.
    The question asked is never among the answers told, be it known by its id or by its wording.

    Parameters
    ----------
    survey : Survey
        The answers that may be known of a person.
    encoder : str or SentenceEncoder
        Questions are alike by the cosine of their texts.
    k : int
        Answers at most, the most similar first.

    Notes
    -----
    A question longer than 160 characters and an option longer than 60 lose their middle, since a question's subject
    may stand at either end. An answer then takes about 65 tokens of English at most, and five fewer than 350.

    Examples
    --------
    The encoder here is a tiny random one; with one other answer there is no choice.

    >>> from transformers import BertConfig, BertModel
    >>> from personae.lm.tiny import tiny_tokenizer
    >>> size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=340, **size)), tiny_tokenizer())
    >>> tea, cake = Question("tea", "Tea or coffee?", ("tea", "coffee")), Question("cake", "Cake?", ("no", "yes"))
    >>> survey = Survey([tea, cake], ["ann"], respondent=[0, 0], question=[0, 1], option=[0, 1])
    >>> SimilarAnswers(survey, encoder).about("ann", tea)
    'Answer as this person. Asked "Cake?", this person said "yes".'
    """

    def __init__(self, survey: Survey, encoder: str | SentenceEncoder = "minilm", k: int = 5) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; at least one similar answer is told")
        self.survey = survey
        self.encoder = SentenceEncoder.load(encoder) if isinstance(encoder, str) else encoder
        self.k = k
        self._embeddings = self.encoder.encode([q.text for q in survey.questions])  # (Q, H)
        self._rows = {name: i for i, name in enumerate(survey.respondent_ids)}
        self._bounds = np.searchsorted(survey.respondent, np.arange(survey.n_respondents + 1))  # of people's answers
        self._similarities: dict[Question, np.ndarray] = {}

    def __call__(self, persona: Persona, question: Question | None) -> str:
        return "" if question is None else self.about(persona.name, question)

    def about(self, respondent: str, question: Question) -> str:
        """The text for a respondent's id and a question, which need not be of the survey; empty if nothing is known."""
        if respondent not in self._rows:
            return ""
        row = self._rows[respondent]
        mine = slice(self._bounds[row], self._bounds[row + 1])
        asked, said = self.survey.question[mine], self.survey.option[mine]  # (n,)
        similarity = self._similarity(question)[asked]
        nearest = [i for i in np.argsort(-similarity, kind="stable")[: self.k] if similarity[i] > -np.inf]
        return answers_as_text((self.survey.questions[asked[i]], said[i]) for i in nearest)

    def _similarity(self, question: Question) -> np.ndarray:
        """Cosine of each question of the survey with this one, (Q,); minus infinity to itself."""
        if question not in self._similarities:
            same = [q.id == question.id or q.text == question.text for q in self.survey.questions]
            cosine = self._embeddings @ self.encoder.encode(question.text)[0]
            self._similarities[question] = np.where(same, -np.inf, cosine)
        return self._similarities[question]


def answers_as_text(answers: Iterable[tuple[Question, int]]) -> str:
    """Questions and the options given, in words.

    Examples
    --------
    >>> answers_as_text([(Question("tea", "Tea or coffee?", ("tea", "coffee")), 1)])
    'Answer as this person. Asked "Tea or coffee?", this person said "coffee".'
    """
    said = [
        f'Asked "{shorten(q.text, _QUESTION_CHARACTERS)}", this person said '
        f'"{shorten(q.options[k], _OPTION_CHARACTERS)}".'
        for q, k in answers
    ]
    return " ".join(["Answer as this person.", *said]) if said else ""


def shorten(text: str, width: int) -> str:
    """A text on one line of at most ``width`` characters; a longer one loses whole words of its middle.

    Examples
    --------
    >>> shorten("Should the government of this country, all things considered, spend more on roads?", 50)
    'Should the government ... spend more on roads?'
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    half = (width - 5) // 2
    head, tail = text[: half + 1].rpartition(" ")[0], text[-half - 1 :].partition(" ")[2]
    return f"{head or text[:half]} ... {tail or text[-half:]}"
