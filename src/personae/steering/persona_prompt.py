"""`PersonaPrompt`: a person's vector, and what the LM makes of the question, become virtual tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from personae.data.survey import Question, Survey
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, Placement, Prompt, chat_prompt, letters_prompt, plain_prompt, text_prompt
from personae.lm.reading import KeyValues, Prepared, option_logits, prepare
from personae.people.persona import Persona
from personae.people.text_opinion_model import PersonContext, TextOpinionModel
from personae.steering.base import ChatRows, Steerer, check_read
from personae.steering.examples import AnswersAndTalk
from personae.steering.expectation import Expectation
from personae.steering.networks import ConstantNetwork, ContextualNetwork, PaperNetwork
from personae.steering.recall import Recall
from personae.training.loop import Schedule, train

if TYPE_CHECKING:
    from personae.people.opinion_model import OpinionModel

_QUESTIONS = 16  # questions of one pass at inference
_TALK_TOKENS = 8
_ROW_TOKENS = 1024  # tokens of continuations of one pass at inference; larger passes leave the cache of a CPU


class PersonaPrompt(Steerer):
    """Steer a frozen LM by virtual tokens computed from person x context.

    Parameters
    ----------
    lm : str or FrozenLM
        Short name, folder or hub id; loaded by `fit`.
    recipe : {"contextual", "paper", "constant"}
        ``"contextual"``: virtual tokens from the person vector and the LM's own representation of the question, the
        trunk warm-started without the LM (`TextOpinionModel`). ``"paper"``: the soft-prompting model of arXiv
        2311.04978 (two-layer perceptron on the vector alone, option letters only). ``"constant"``: a control, one soft
        prompt for everybody and every question, trained on the paper's targets: what the answers' format alone gives.
    placement : {"late", "prefix", "before", "system"}, optional
        Where the virtual tokens go; "prefix" for the paper's recipe, else "late".
    n_tokens : int, optional
        Virtual tokens T of a question's answer; 2, or 1 for the paper's recipe. The contextual one talks with eight
        and the words of an answer that is expected of the person (`personae.steering.recall`).
    steps : int
        Training steps at most.
    batches : int
        Of a training step, which several processes share (`accelerate launch`); more of them make a steadier step.
    random_state : int

    Attributes
    ----------
    lm_ : FrozenLM
    network_ : torch.nn.Module
    history_ : list of dict
        One a validation: step, loss, NLL and accuracy on held-out people.
    sharpness_ : float
        What the letters' logits of questions that were not trained on are multiplied with, so that their probabilities
        are no surer than they should be: learned on people held out, of questions taken for new.
    text_model_ : TextOpinionModel or None
        The warm start of the contextual recipe, which answers any question without the LM; None after `load`.

    Notes
    -----
    The contextual recipe's target of an answer is a mixture of what was said and of the opinion model's probabilities:
    the second half says the same with less noise. Its one network answers and talks: batches mix option letters, option
    texts and short first-person sentences in the chat template. The other recipes learn letters from what was said.

    Examples
    --------
    The LM here is a tiny random one, so that the example runs in a moment.

    >>> from personae import OpinionModel, PersonaPrompt, load_sample
    >>> from personae.lm.tiny import tiny_lm
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> steerer = PersonaPrompt(tiny_lm(), recipe="paper", steps=5).fit(survey, people, progress=False)
    >>> me = people.fold_in({"natenvir": "too little", "natarms": "too much"})
    >>> table = steerer.answer("Should the city build more bike lanes?", ["no", "yes"], [me, people["r0001"]])
    >>> table.columns.tolist(), table.sum(axis=1).round(3).tolist()
    (['no', 'yes'], [1.0, 1.0])
    >>> type(steerer.chat("What should the government spend more on?", me, max_new_tokens=5))
    <class 'str'>
    """

    method = "persona_prompt"

    def __init__(
        self,
        lm: str | FrozenLM = "smollm2-135m",
        recipe: Literal["contextual", "paper", "constant"] = "contextual",
        placement: Placement | None = None,
        n_tokens: int | None = None,
        steps: int = 400,
        batches: int = 1,
        random_state: int = 0,
    ) -> None:
        self.lm = lm
        self.recipe = recipe
        self.placement = placement
        self.n_tokens = n_tokens
        self.steps = steps
        self.batches = batches
        self.random_state = random_state

    # learning --------------------------------------------------------------------------------------------------
    def fit(
        self,
        survey: Survey,
        people: OpinionModel,
        checkpoint: Path | str | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> PersonaPrompt:
        """Train on a survey whose people and questions ``people`` knows.

        Parameters
        ----------
        checkpoint : path, optional
            A file, replaced at intervals; ``resume`` goes on from it to the same result.
        """
        self._settle()
        waiting = Console(stderr=True, quiet=not progress).status("the language model reads the questions")
        with torch.random.fork_rng(devices=[]), waiting:
            torch.manual_seed(self.random_state)
            task = AnswersAndTalk(self.lm_, survey, people, self.placement_, self.recipe, self.random_state)
            self.text_model_ = None
            if self.recipe == "contextual":
                waiting.update("learning what people make of the questions, without the language model")
                self.text_model_ = TextOpinionModel(random_state=self.random_state)
                self.text_model_.fit(survey, people, torch.stack(task.views).cpu().numpy())
            task.network = self.network_ = self._build(task, people).to(self.lm_.device)
        schedule = Schedule(
            steps=self.steps,
            weight_decay=1e-2 if self.recipe == "contextual" else 1e-3,
            seed=self.random_state,
            batches=self.batches,
        )
        path = None if checkpoint is None else Path(checkpoint)
        self.history_ = train(task, schedule, path, resume, progress)
        self.sharpness_ = task.sharpness()
        self.known_ = {_mark(task.letters.prompts[j]): int(j) for j in task.usable}
        self.lm_fingerprint_ = self.lm_.fingerprint
        return self

    def _settle(self) -> None:
        if self.recipe not in ("contextual", "paper", "constant"):
            raise ValueError(f'recipe is "contextual", "paper" or "constant", not "{self.recipe}"')
        paper = self.recipe == "paper"
        self.placement_: Placement = self.placement or ("prefix" if paper else "late")
        for name, value in (("steps", self.steps), ("batches", self.batches), ("n_tokens", self.n_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1")
        read = self.n_tokens or (1 if paper else 2)
        talk = _TALK_TOKENS if self.recipe == "contextual" else read
        self.n_tokens_ = {"letters": read, "text": read, "talk": talk}
        self.lm_ = self.lm if isinstance(self.lm, FrozenLM) else FrozenLM.load(self.lm)

    def _build(self, task: AnswersAndTalk, people: OpinionModel) -> torch.nn.Module:
        prefix = self.placement_ == "prefix"
        if self.recipe == "paper":
            vectors = torch.as_tensor(people.vectors_).float()
            return PaperNetwork(self.lm_, vectors, self.n_tokens_, prefix)
        if self.recipe == "constant":
            return ConstantNetwork(self.lm_, people.vectors_.shape[1], self.n_tokens_, prefix)
        assert self.text_model_ is not None
        trunk = self.text_model_.network_.without_dropout()
        readout, columns = people._readout, people.question_index(task.survey.question_ids)
        intercepts, slopes = (torch.as_tensor(x[columns]) for x in (readout.intercepts, readout.weights))
        marginal = torch.zeros(intercepts.shape)  # as wide as the widest question that the opinion model knows
        marginal[:, : task.marginal.shape[1]] = torch.as_tensor(task.marginal)
        recall = Recall.of(self.lm_, task.survey.questions, task.views[-1], marginal)
        typical = torch.as_tensor(people.typical_covariance_).float()
        expectation = Expectation(intercepts, slopes, typical, self.text_model_.new_)
        return ContextualNetwork(self.lm_, trunk, expectation, recall, self.n_tokens_, prefix)

    # answering -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """Option probabilities of any personas x questions, float32 (P, Q, K).

        With placement ``late`` a question is computed once for everybody.
        """
        return self.predict_proba_vectors(self._vectors(personas), questions, read, _covariances(personas))

    @torch.no_grad()
    def predict_proba_vectors(
        self,
        vectors: torch.Tensor,
        questions: Sequence[Question],
        read: str = "letters",
        covariances: np.ndarray | None = None,
    ) -> np.ndarray:
        """`predict_proba` of person vectors (P, D) and their covariances (P, D, D), or vectors taken as they are."""
        width = max(len(q.options) for q in questions)
        out = np.zeros((len(vectors), len(questions), width), dtype=np.float32)
        for rows, columns, p in self._parts(vectors, questions, read, covariances):
            out[rows, columns, : p.shape[2]] = p
        return out

    def predict_parts(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> Iterator[tuple[slice, list[int], np.ndarray]]:
        """See `Steerer`; together the parts take no longer than `predict_proba`, whose passes they are."""
        return self._parts(self._vectors(personas), questions, read, _covariances(personas))

    @torch.no_grad()
    def _parts(
        self, vectors: torch.Tensor, questions: Sequence[Question], read: str, covariances: np.ndarray | None
    ) -> Iterator[tuple[slice, list[int], np.ndarray]]:
        check_read(read)
        roots = self._roots(covariances, read)
        vectors = vectors.to(self.lm_.device)
        put = letters_prompt if read == "letters" else text_prompt
        # Longest last, so that a pass holds questions of similar length.
        order = sorted(
            range(len(questions)), key=lambda j: len(questions[j].text) + sum(map(len, questions[j].options))
        )
        for start in range(0, len(order), _QUESTIONS):
            columns = order[start : start + _QUESTIONS]
            asked = [questions[j] for j in columns]
            prepared = self._prepared([put(self.lm_, q.text, q.options, self.placement_) for q in asked])
            options = [q.options for q in asked]
            sharp = torch.ones(len(asked), device=vectors.device)
            if read == "letters":
                sharp = torch.tensor([self.sharpness_of(q) for q in asked], device=vectors.device)
            longest = max(len(p.after) for p in prepared.prompts) + self.n_tokens_[read]
            if read == "text":
                longest += max(sum(len(self.lm_.tokens(o)) for o in each) for each in options)
            people = max(1, _ROW_TOKENS // (longest * len(asked)))
            for first in range(0, len(vectors), people):
                rows = slice(first, first + people)
                n, unsure = [len(o) for o in options], None if roots is None else roots[rows]
                virtual = self.virtual_tokens(prepared, vectors[rows], read, n, unsure)
                logits = option_logits(self.lm_, prepared, virtual, options, read)
                p = torch.softmax(logits * sharp[:, None, None], -1)
                yield rows, columns, p.transpose(0, 1).cpu().numpy()

    def _prepared(self, prompts: list[Prompt]) -> Prepared:
        """What was asked last stays computed: many people come in blocks."""
        lm, last = getattr(self, "_last", (None, None))
        if last is None or lm is not self.lm_ or last.prompts != prompts:
            last = prepare(self.lm_, prompts)
            self._last = self.lm_, last
        return last

    def sharpness_of(self, question: Question) -> float:
        """What the logits of a question's letters are multiplied with: 1 for one that was trained on."""
        prompt = letters_prompt(self.lm_, question.text, question.options, self.placement_)
        return 1.0 if _mark(prompt) in self.known_ else self.sharpness_

    def virtual_tokens(
        self,
        prepared: Prepared,
        vectors: torch.Tensor,
        format: str,
        n_options: list[int] | None = None,
        roots: torch.Tensor | None = None,
    ) -> torch.Tensor | KeyValues:
        """Virtual tokens (C, N, T, H) of people (N, D) in C contexts; key/values a layer for ``prefix``."""
        h, network = prepared.representation, self.network_
        if not isinstance(network, ContextualNetwork) or format != "letters" or n_options is None:
            return network(vectors, h, format)
        known = torch.tensor([self.known_.get(_mark(prompt), -1) for prompt in prepared.prompts], device=h.device)
        expected = network.expectation(vectors, h, n_options, known, roots)
        return network(vectors, h, format, expected, known < 0)

    def question_rows(self, question: Question, personas: Sequence[Persona], read: str = "letters") -> ChatRows:
        """One question as each persona is asked it, to be read by letters or texts, as `chat_rows` gives a chat."""
        check_read(read)
        put = letters_prompt if read == "letters" else text_prompt
        prompt = put(self.lm_, question.text, question.options, self.placement_)
        return self._rows(prompt, personas, read, [len(question.options)])

    # talking ---------------------------------------------------------------------------------------------------
    def chat_rows(self, messages: Sequence[Message], personas: Sequence[Persona]) -> ChatRows:
        """See `Steerer`; the chat is read once for everybody."""
        return self._rows(chat_prompt(self.lm_, messages, self.placement_), personas, "talk")

    def text_rows(self, text: str, personas: Sequence[Persona]) -> ChatRows:
        """See `Steerer`; the virtual tokens are those of talking, in the context of the text."""
        return self._rows(plain_prompt(self.lm_, text, self.placement_), personas, "talk")

    @torch.no_grad()
    def _rows(
        self, prompt: Prompt, personas: Sequence[Persona], format: str, n_options: list[int] | None = None
    ) -> ChatRows:
        prepared, vectors = prepare(self.lm_, [prompt]), self._vectors(personas)
        roots = self._roots(_covariances(personas), format)
        virtual = self.virtual_tokens(prepared, vectors, format, n_options, roots)
        contexts = None if prepared.parts is None else prepared.parts * len(personas)
        virtual = virtual[0] if isinstance(virtual, torch.Tensor) else virtual
        return ChatRows([prompt] * len(personas), virtual, contexts=contexts)

    def _vectors(self, personas: Sequence[Persona]) -> torch.Tensor:
        """Person vectors (P, D) on the LM's device."""
        if not personas:
            raise ValueError("nobody is asked; give at least one persona")
        wanted = self.network_.n_person
        for persona in personas:
            if len(persona.vector) != wanted:
                raise ValueError(
                    f'persona "{persona.name}" has {len(persona.vector)} numbers, but this steerer was trained with '
                    f"vectors of {wanted}: take personas of the opinion model it was trained with"
                )
        return torch.as_tensor(np.stack([p.vector for p in personas])).float().to(self.lm_.device)

    def _roots(self, covariances: np.ndarray | None, format: str) -> torch.Tensor | None:
        """How much less is known of people than of those trained on, (P, D, D), for letters; see `Expectation`."""
        if covariances is None or format != "letters" or not isinstance(self.network_, ContextualNetwork):
            return None
        return self.network_.expectation.roots(covariances)

    # files -----------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """``network.safetensors`` and ``steerer.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {n: v.contiguous().cpu() for n, v in self.network_.state_dict().items()}, folder / "network.safetensors"
        )
        about = {
            "method": self.method,
            "parameters": {**self.get_params(deep=False), "lm": self.lm_.name},
            "placement": self.placement_,
            "n_tokens": self.n_tokens_,
            "n_person": self.network_.n_person,
            "lm": self.lm_fingerprint_,
            "history": self.history_,
            "sharpness": self.sharpness_,
            "known": self.known_,
        }
        (folder / "steerer.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path | str, lm: str | FrozenLM | None = None) -> PersonaPrompt:
        """Open what `save` wrote.

        Raises
        ------
        ValueError
            The LM is not the one it was trained with, or the folder is of an earlier version.
        """
        folder = Path(folder)
        about: dict[str, Any] = json.loads((folder / "steerer.json").read_text())
        self = cls(**{**about["parameters"], **({} if lm is None else {"lm": lm})})
        self._settle()
        # What it was trained with, also where another version has other defaults.
        self.placement_, self.n_tokens_ = about["placement"], about["n_tokens"]
        check_lm(self.lm_, about["lm"], folder)
        self.lm_fingerprint_ = self.lm_.fingerprint
        weights = load_file(folder / "network.safetensors")
        prefix = self.placement_ == "prefix"
        if self.recipe == "paper":
            vectors = torch.zeros(2, len(weights["mean"]))
            self.network_ = PaperNetwork(self.lm_, vectors, self.n_tokens_, prefix)
        elif self.recipe == "constant":
            self.network_ = ConstantNetwork(self.lm_, about["n_person"], self.n_tokens_, prefix)
        else:
            width, n_context = weights["trunk.interaction.weight"].shape
            n_person = weights["trunk.person.0.weight"].shape[1]
            trunk = PersonContext(n_person, n_context, width, dropout=0.0, views=len(weights["trunk.h_mean"]))
            if not {"expectation.typical", "recall.keys"} <= weights.keys():
                raise ValueError(f"{folder} is of an earlier version, which told the LM less; train it again")
            expectation = Expectation.from_state(_part(weights, "expectation."))
            recall = Recall.from_state(_part(weights, "recall."))
            self.network_ = ContextualNetwork(self.lm_, trunk, expectation, recall, self.n_tokens_, prefix)
        self.network_.load_state_dict(weights)
        self.network_.to(self.lm_.device).eval()
        self.history_ = about["history"]
        self.sharpness_, self.known_ = about["sharpness"], about["known"]
        self.text_model_ = None
        return self


def check_lm(lm: FrozenLM, trained_with: dict[str, Any], folder: Path) -> None:
    """Raise ``ValueError`` if the LM is not the one of the fingerprint, whatever its name."""
    for key, value in trained_with.items():
        if key != "name" and lm.fingerprint[key] != value:
            raise ValueError(
                f"{folder} was trained with {trained_with['name']}, but {lm.name} has another {key}; "
                "give the same LM, or train again"
            )


def _covariances(personas: Sequence[Persona]) -> np.ndarray:
    return np.stack([p.covariance for p in personas])


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _mark(prompt: Prompt) -> str:
    """A short name of a question's prompt: of its wording and options, whatever its id."""
    return hashlib.sha256(" ".join(map(str, prompt.text_ids)).encode()).hexdigest()[:16]
