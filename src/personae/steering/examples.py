"""What a persona prompt is trained on: answers by letter and by text, and sentences that state them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from personae.data.survey import Survey
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import LETTERS, Placement, Prompt, chat_prompt, letters_prompt, reply_ids, text_prompt
from personae.lm.reading import Prepared, option_logits, prepare, read, represent, text_log_probs
from personae.people.text_opinion_model import sharpness
from personae.steering import talk
from personae.steering.recall import apartness

if TYPE_CHECKING:
    from personae.people.opinion_model import OpinionModel

log = logging.getLogger(__name__)
_SAID = 0.3  # weight of what was said in the target; the rest are the opinion model's probabilities
_SPOKEN = 64  # questions that are also answered by text
_SENTENCES, _OPEN, _SMALL = 5, 2, 1  # replies of a step: to a question of the survey, to an open one, to a greeting
_STEP_TOKENS = 2048  # tokens of continuations in a step, where the prompt is not shared
_NEW = 0.25  # share of a step's questions that are taken for new
_TRIED = 64  # questions taken for new to learn how sure to be of new ones
_VALIDATION = 0.05  # share of the people who are held out to stop early


class AnswersAndTalk:
    """The training task of `PersonaPrompt` (a `personae.training.loop.Task`).

    Every step reads letters for some questions x people, every other step of people as they would be known by some of
    their answers. It adds sentences that state an answer, or to an open question the answers which set a person apart;
    every fourth step adds option texts.
    """

    network: nn.Module
    counts = "answers"

    def __init__(
        self, lm: FrozenLM, survey: Survey, people: OpinionModel, placement: Placement, recipe: str, seed: int
    ) -> None:
        self.lm, self.survey, self.people, self.seed = lm, survey, people, seed
        self.recipe, self.placement = recipe, placement
        rng = np.random.default_rng(seed)
        questions = survey.questions
        asked = lettered(survey)
        texts = [text_prompt(lm, q.text, q.options, placement) for q in questions]
        letters = [  # the text stands in for what is never asked by letters
            letters_prompt(lm, q.text, q.options, placement) if asked[j] else texts[j] for j, q in enumerate(questions)
        ]
        self.letters = prepare(lm, letters)
        self.spoken = np.sort(rng.choice(len(questions), min(_SPOKEN, len(questions)), replace=False))
        self.texts = prepare(lm, [texts[j] for j in self.spoken])
        # Every question's representation in each format, for the trunk that is warm-started without the LM.
        if recipe == "contextual":
            chats = [self._chat(talk.ask(q, rng), placement) for q in questions]
            self.views = [self.letters.representation, represent(lm, texts), represent(lm, chats)]
        self.vectors = torch.as_tensor(people.vectors_).float().to(lm.device)
        # Option of each person and question, -1 where there is no answer: (N, Q) int16
        self.given = np.full((len(people.vectors_), len(questions)), -1, dtype=np.int16)
        self.rows = _rows(survey, people)
        self.given[self.rows[survey.respondent], survey.question] = survey.option
        order = rng.permutation(np.unique(self.rows[survey.respondent]))
        held_out = max(1, min(100, round(_VALIDATION * len(order))))
        self.held_out, self.trained = np.sort(order[:held_out]), np.sort(order[held_out:])
        if len(self.trained) == 0:
            raise ValueError("a persona prompt needs at least two people who answered")
        self.asked = [
            np.intersect1d(np.flatnonzero(self.given[:, j] >= 0), self.trained) for j in range(len(questions))
        ]
        self.usable = np.flatnonzero(asked & [len(who) > 0 for who in self.asked])
        counts = survey.option_counts().astype(float)
        self.marginal = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        # What a person adds to the shared prompt decides how many fit in a step.
        longest = max(len(p.after) for p in self.letters.prompts) + 2
        self.questions_a_step = 16 if longest < 16 else 4
        self.people_a_step = int(np.clip(_STEP_TOKENS // (self.questions_a_step * longest), 2, 8))

    def _chat(self, text: str, placement: Placement) -> Prompt:
        return chat_prompt(self.lm, [{"role": "user", "content": text}], placement)

    # the Task interface ----------------------------------------------------------------------------------------
    def groups(self) -> list[dict[str, Any]]:
        """The warm-started trunk learns slower than what speaks to the LM."""
        if self.recipe != "contextual":
            return [{"params": list(self.network.parameters()), "lr": 1e-3 if self.recipe == "paper" else 5e-3}]
        trunk = [p for n, p in self.network.named_parameters() if n.startswith("trunk.")]
        rest = [p for n, p in self.network.named_parameters() if not n.startswith("trunk.")]
        return [{"params": trunk, "lr": 1e-3}, {"params": rest, "lr": 5e-3}]

    def identity(self) -> dict[str, Any]:
        """What must be the same to resume."""
        return {
            "survey": self.survey.fingerprint,
            "people": hashlib.sha256(self.people.vectors_.tobytes()).hexdigest(),
            "lm": self.lm.fingerprint,
            "recipe": self.recipe,
            "placement": self.placement,
            "weights": {name: list(value.shape) for name, value in self.network.state_dict().items()},
        }

    def losses(self, step: int, batch: int = 0) -> Iterator[tuple[Tensor, int]]:
        """Mean cross-entropy of each of the step's formats."""
        rng = np.random.default_rng([self.seed, step, batch])
        contextual = self.recipe == "contextual"
        yield self._strangers(rng) if contextual and step % 2 else self._letters(rng)
        if contextual:
            yield self._talk(rng)
            if step % 4 == 3:
                yield self._texts(rng)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL and accuracy of letters on real answers of people held out from this training."""
        rng = np.random.default_rng(self.seed)
        nll, right, count = 0.0, 0, 0
        answered = (self.given[self.held_out] >= 0).any(0)
        for j in rng.permutation(self.usable[answered[self.usable]])[:48]:
            who = np.intersect1d(np.flatnonzero(self.given[:, j] >= 0), self.held_out)
            logits = self._logits(np.array([j]), who[None])[0].log_softmax(-1).cpu()
            y = torch.as_tensor(self.given[who, j].astype(np.int64))
            nll -= logits.gather(1, y[:, None]).sum().item()
            right += int((logits.argmax(1) == y).sum())
            count += len(who)
        return {"nll": nll / max(count, 1), "accuracy": right / max(count, 1)}

    @torch.no_grad()
    def sharpness(self) -> float:
        """How sure to be of new questions: what their letters' logits are to be multiplied with (1: as they are).

        Learned on the answers that people held out gave to questions taken for new.
        """
        if self.recipe != "contextual":
            return 1.0
        self.network.eval()
        logits, target, widest = [], [], int(self.survey.n_options.max())
        for j in np.random.default_rng(self.seed).permutation(self.usable)[:_TRIED]:
            who = np.intersect1d(np.flatnonzero(self.given[:, j] >= 0), self.held_out)[None]
            if who.size:
                found = self._logits(np.array([j]), who, np.array([True]))[0].cpu().numpy()
                beyond = ((0, 0), (0, widest - found.shape[1]))
                logits.append(np.pad(found, beyond, constant_values=-np.inf))
                target.append(np.pad(self._target(np.array([j]), who)[0].cpu().numpy(), beyond))
        return sharpness(np.concatenate(logits), np.concatenate(target)) if logits else 1.0

    # formats ---------------------------------------------------------------------------------------------------
    def _letters(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        asked = rng.choice(self.usable, min(self.questions_a_step, len(self.usable)), replace=False)
        who = np.stack([rng.choice(self.asked[j], self.people_a_step) for j in asked])  # (C, N)
        target = self._target(asked, who)
        if self.recipe != "contextual":
            return _cross_entropy(self._logits(asked, who), target), who.size
        # Half of those taken for new are told and answered in reverse: the LM is to say what it is told, not what
        # questions of this survey are mostly answered with.
        new = rng.random(len(asked)) < _NEW
        turned = torch.as_tensor(new & (rng.random(len(asked)) < 0.5))
        target = reverse(target, self.survey.n_options[asked].tolist(), turned)
        return _cross_entropy(self._logits(asked, who, new, turned), target), who.size

    def _strangers(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Letters of people as strangers are known: by some of their other answers, few as often as many."""
        asked = rng.choice(self.usable, min(self.questions_a_step, len(self.usable)), replace=False)
        who = np.stack([rng.choice(self.asked[j], self.people_a_step) for j in asked])  # (C, N)
        personas = self.people.fold_in(
            [self._some_answers(i, j, rng) for j, row in zip(asked, who, strict=True) for i in row]
        )
        prepared, network = self.letters.select(asked.tolist()), cast(Any, self.network)
        vectors = torch.as_tensor(np.stack([p.vector for p in personas])).to(self.vectors)
        vectors = vectors.unflatten(0, who.shape)
        roots = network.expectation.roots(np.stack([p.covariance for p in personas])).unflatten(0, who.shape)
        options = [self.survey.questions[j].options for j in asked]
        at = torch.as_tensor(asked, device=vectors.device)
        expected = network.expectation(vectors, prepared.representation, [len(o) for o in options], at, roots)
        virtual = network(vectors, prepared.representation, "letters", expected)
        target = _SAID * self._said(asked, who) + (1 - _SAID) * expected.softmax(-1)
        return _cross_entropy(option_logits(self.lm, prepared, virtual, options), target), who.size

    def _some_answers(self, person: int, without: int, rng: np.random.Generator) -> dict[str, str]:
        """From one to all of the answers that somebody gave to other questions."""
        others = np.setdiff1d(np.flatnonzero(self.given[person] >= 0), [without])
        n = round(len(others) ** rng.random()) if len(others) else 0
        questions = self.survey.questions
        return {questions[j].id: questions[j].options[self.given[person, j]] for j in rng.choice(others, n, False)}

    def _texts(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        at, asked, who = self._some_spoken(rng, 2, 8)
        prepared = self.texts.select(at.tolist())
        options = [self.survey.questions[j].options for j in asked]
        virtual = self._virtual(prepared, who, "text")
        logits = option_logits(self.lm, prepared, virtual, options, by="text")
        return _cross_entropy(logits, self._target(asked, who)), who.size

    def _talk(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        """First-person replies: what somebody answers to one question, to an open one what sets them apart, to small
        talk what anybody says."""
        asked, greetings = rng.choice(self.usable, _SENTENCES), list(talk.SMALL.items())
        greeted = [greetings[i] for i in rng.choice(len(greetings), _SMALL)]
        who = np.concatenate([[rng.choice(self.asked[j]) for j in asked], rng.choice(self.trained, _OPEN + _SMALL)])
        texts = [
            *(talk.ask(self.survey.questions[j], rng) for j in asked),
            *(talk.OPEN[i] for i in rng.choice(len(talk.OPEN), _OPEN)),
            *(text for text, _ in greeted),
        ]
        option = [self._drawn(j, person, rng) for j, person in zip(asked, who, strict=False)]
        stated = [(self.survey.questions[j], k) for j, k in zip(asked, option, strict=True)]
        replies = [
            *(talk.reply(question, question.options[k], rng) for question, k in stated),
            *(self._telling(person, rng) for person in who[_SENTENCES : _SENTENCES + _OPEN]),
            *(reply for _, reply in greeted),
        ]
        # The LM is told what the reply will say, to trust what it is told; or to judge by itself, if told of others.
        without, said = np.full(len(texts), -1), np.full((len(texts), 2), -1)
        without[:_SENTENCES] = np.where(rng.random(_SENTENCES) < _NEW, asked, -1)
        said[:_SENTENCES] = np.stack([asked, option], 1)
        prepared = prepare(self.lm, [self._chat(text, self.placement) for text in texts])
        tokens = [[reply_ids(self.lm, text)] for text in replies]
        told = {"without": without, "said": said}
        virtual = self.network(
            self.vectors[who[:, None]],
            prepared.representation,
            "talk",
            **{name: torch.as_tensor(value, device=self.vectors.device) for name, value in told.items()},
        )
        found = read(self.lm, prepared, virtual, tokens)
        return -torch.cat(text_log_probs(self.lm, found, tokens)).mean(), len(replies)

    def _drawn(self, j: int, person: int, rng: np.random.Generator) -> int:
        """Somebody's answer to a question, drawn from its target."""
        p = self._target(np.array([j]), np.array([[person]]))[0, 0].cpu().numpy().astype(np.float64)
        return int(rng.choice(len(p), p=p / p.sum()))

    def _telling(self, person: int, rng: np.random.Generator) -> str:
        """One or two of the answers that set somebody apart."""
        p = self.people.predict_proba(self.people.vectors_[person], self.survey.question_ids)[0]
        marginal = torch.as_tensor(self.marginal)
        apart = apartness(torch.as_tensor(p[:, : marginal.shape[1]]).log(), marginal).numpy()
        said, questions = talk.telling(apart, int(rng.integers(1, 3)), rng), self.survey.questions
        return " ".join(talk.reply(questions[j], questions[j].options[k], rng) for j, k in said)

    # pieces ----------------------------------------------------------------------------------------------------
    def _some_spoken(self, rng: np.random.Generator, c: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places among the spoken questions, the questions, and people (C, N)."""
        usable = np.flatnonzero(np.isin(self.spoken, self.usable))
        at = rng.choice(usable, min(c, len(usable)), replace=False)
        return at, self.spoken[at], np.stack([rng.choice(self.asked[j], n) for j in self.spoken[at]])

    def _virtual(self, prepared: Prepared, who: np.ndarray, format: str) -> Any:
        return self.network(self.vectors[who], prepared.representation, format)

    def _logits(
        self,
        asked: np.ndarray,
        who: np.ndarray,
        new: np.ndarray | None = None,
        turned: Tensor | None = None,
    ) -> Tensor:
        """Logits (C, N, K) of questions (C,) for people (C, N); those flagged ``new`` are taken for new ones, of which
        the LM is told in reverse if they are flagged ``turned``, too."""
        prepared = self.letters.select(asked.tolist())
        options = [self.survey.questions[j].options for j in asked]
        if self.recipe != "contextual":
            return option_logits(self.lm, prepared, self._virtual(prepared, who, "letters"), options)
        n, vectors, network = [len(o) for o in options], self.vectors[who], cast(Any, self.network)
        at = torch.as_tensor(asked, device=vectors.device)
        expected, taken = network.expectation(vectors, prepared.representation, n, at), None
        if new is not None:
            taken = torch.as_tensor(new, device=vectors.device)
            left_out = network.expectation.new.left_out(vectors, at, n)
            left_out = left_out if turned is None else reverse(left_out, n, turned)
            expected = torch.where(taken[:, None, None], left_out, expected)
        virtual = network(vectors, prepared.representation, "letters", expected, taken)
        return option_logits(self.lm, prepared, virtual, options)

    def _target(self, asked: np.ndarray, who: np.ndarray) -> Tensor:
        """Target probabilities (C, N, K) of people who answered."""
        said = self._said(asked, who)
        if self.recipe != "contextual":  # cross-entropy on the answers alone, as published
            return said
        columns = np.broadcast_to(asked[:, None], who.shape)
        known = self.people.predict_proba_pairs(who.ravel(), self._columns(columns.ravel()))[:, : said.shape[-1]]
        return _SAID * said + (1 - _SAID) * torch.as_tensor(known, device=said.device).view_as(said)

    def _said(self, asked: np.ndarray, who: np.ndarray) -> Tensor:
        """One at the option (C, N, K) that was given."""
        width = int(self.survey.n_options[asked].max())
        return torch.as_tensor(np.eye(width, dtype=np.float32)[self.given[who, asked[:, None]]], device=self.lm.device)

    def _columns(self, questions: np.ndarray) -> np.ndarray:
        if not hasattr(self, "_column"):
            place = {q.id: i for i, q in enumerate(self.people.questions_)}
            self._column = np.array([place[q.id] for q in self.survey.questions])
        return self._column[questions]


def lettered(survey: Survey) -> np.ndarray:
    """Which questions are asked by letters, (Q,): those with more options than there are letters are not learned from.

    They are named in a warning; raises ``ValueError`` if no question is left.
    """
    few = survey.n_options <= len(LETTERS)
    names = ", ".join(survey.question_ids[~few])
    if not few.any():
        raise ValueError(f"every question has more than {len(LETTERS)} options, which letters cannot name: {names}")
    if names:
        log.warning("not learned from, since letters name %d options at most: %s", len(LETTERS), names)
    return few


def _rows(survey: Survey, people: OpinionModel) -> np.ndarray:
    """Row of each of the survey's respondents in the opinion model."""
    rows = people.respondent_ids_.get_indexer(survey.respondent_ids)
    if (rows < 0).any():
        unknown = survey.respondent_ids[rows < 0][0]
        raise ValueError(f'the opinion model does not know respondent "{unknown}"; fit it on the same survey')
    return rows


def reverse(x: Tensor, n_options: list[int], turned: Tensor) -> Tensor:
    """Last option first, of the flagged questions.

    Parameters
    ----------
    x : Tensor (C, N, K)
        Of questions, people and options; what is beyond a question's own options stays there.
    n_options : list of C int
    turned : bool Tensor (C,)

    Examples
    --------
    >>> x = torch.tensor([[[5.0, 6.0, 7.0, 0.0]], [[1.0, 2.0, 3.0, 4.0]]])
    >>> reverse(x, [3, 4], torch.tensor([True, False])).tolist()
    [[[7.0, 6.0, 5.0, 0.0]], [[1.0, 2.0, 3.0, 4.0]]]
    """
    own, turned = torch.tensor(n_options, device=x.device)[:, None], turned.to(x.device)[:, None]
    place = torch.arange(x.shape[-1], device=x.device).expand(len(x), -1)  # (C, K)
    place = torch.where(turned & (place < own), own - 1 - place, place)
    return x.gather(-1, place[:, None].expand_as(x))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of -sum target * log softmax(logits); -inf logits carry no target."""
    log_p = logits.log_softmax(-1).masked_fill(torch.isinf(logits), 0.0)
    return -(target.to(log_p.dtype) * log_p).sum(-1).mean()
