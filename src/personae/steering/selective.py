"""`Selective`: a bank of soft prompts and a retriever that picks one for the dialogue at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from personae.data.dialogues import Dialogues
from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Message, Placement, Prompt, chat_prompt, letters_prompt, reply_ids, text_prompt
from personae.lm.reading import option_logits, prepare
from personae.people.persona import Persona
from personae.steering.bank import PaperRetriever, PromptBank, Retriever, SelectiveNetwork
from personae.steering.base import ChatRows, Steerer, check_read
from personae.steering.persona_prompt import check_lm
from personae.steering.replies import Batch, People, RepliesTask, log_choice, reply_nll, represent
from personae.steering.selection import PAPER_WEIGHTS
from personae.training.loop import Schedule, best_figures, train

_WEIGHTS: dict[str, dict[str, float]] = {
    "mixture": {"balance": 0.1, "contrast": 0.1},
    "paper": PAPER_WEIGHTS,
}
_SHARED = {"mixture": 0.75, "paper": 0.0}
_CHATS = 16  # chats of one pass
COLLAPSED = 1.1  # a bank of fewer effective prompts is one prompt


class Selective(Steerer):
    """Selective prompt tuning: K soft prompts, of which a retriever picks one for each context.

    Parameters
    ----------
    lm : str or FrozenLM
        Short name, folder or hub id; loaded by `fit`.
    recipe : {"mixture", "paper"}
        ``"paper"``: the losses of arXiv 2406.18187 with its retriever over word embeddings, and placement ``before``.
        ``"mixture"``: the likelihood under what speaks (``selection``), prompts in balanced use, a firm choice by the
        LM's own representation of the context, and prompts that are shifted by it.
    n_prompts, n_tokens : int
        Prompts K of the bank, and virtual tokens n of each: together as many numbers as one prompt of K x n tokens.
    shared : float, optional
        Share of the bank's K x n tokens, 0 to 1, that stand before every prompt, whichever is chosen; at least one
        token of each prompt is its own. 0.75, so that of 4 x 8 tokens 24 are shared and a prompt has 2 of its own; 0 in
        the paper's recipe.
    placement : {"late", "prefix", "before", "system"}, optional
        ``"late"``, or ``"before"`` for the paper's recipe. With ``late`` a context is computed once for all K prompts.
    deep : bool, optional
        Whether virtual tokens are corrected before every layer of the LM, not set at its input alone: many more
        numbers, which learn much faster. True, but for the paper's recipe, placement ``prefix`` and ``reparametrise``,
        with which it does not go.
    encoder : {"lm", "embeddings"}, optional
        What the retriever reads of a context: the LM's last and mean hidden state, or the mean word embedding as in the
        paper.
    choice : {"learned", "random", "uniform"}
        Controls: one prompt at random for each context, or all of them mixed evenly. For the mixture recipe.
    shift : bool
        Whether prompts are shifted by the context (mixture recipe). ``n_prompts=1`` with it is a contextual prompt,
        without it prompt tuning.
    reparametrise : bool
        P-tuning: prompts come out of a small recurrent network.
    weights : mapping, optional
        Weights of losses that differ from the recipe's: ``balance`` and ``contrast``; for the paper's recipe ``lm``,
        ``fusion``, ``selection`` and ``contrastive``.
    selection : {"hard", "mixture"}
        Who speaks: the most probable prompt, or all of them, each weighted by its probability, which what has been said
        so far revises at every token. The bank learns for the one or the other, and may be asked to do both.
    steps : int
        Training steps at most, of eight replies each.
    batches : int
        Of a training step, which several processes share (`accelerate launch`); more of them make a steadier step.
    random_state : int

    Attributes
    ----------
    lm_ : FrozenLM
    network_ : SelectiveNetwork
    history_ : list of dict
        One a validation: step, loss, NLL a token of held-out dialogues, and prompts in use (1 to K).

    Notes
    -----
    The union of two papers: if `fit` is given people, a speaker's vector enters the retriever's query and shifts the
    prompts, so that one bank serves everybody and still differs by person.

    Examples
    --------
    The LM here is a tiny random one, so that the example runs in a moment.

    >>> from personae.data.dialogues import Dialogue, Turn
    >>> from personae.lm.tiny import tiny_lm
    >>> talk = (Turn("bob", "Tea?"), Turn("ann", "Coffee, please."))
    >>> dialogues = Dialogues([Dialogue(str(i), talk, {"ann": ("I never drink tea.",)}) for i in range(4)])
    >>> steerer = Selective(tiny_lm(), n_prompts=2, n_tokens=2, steps=2).fit(dialogues, progress=False)
    >>> chat = [{"role": "system", "content": "I never drink tea."}, {"role": "user", "content": "Tea?"}]
    >>> steerer.choose([chat]).shape
    (1, 2)
    >>> type(steerer.chat(chat, max_new_tokens=5))
    <class 'str'>
    """

    method = "selective"

    def __init__(
        self,
        lm: str | FrozenLM = "smollm2-135m",
        recipe: Literal["mixture", "paper"] = "mixture",
        n_prompts: int = 4,
        n_tokens: int = 8,
        shared: float | None = None,
        placement: Placement | None = None,
        deep: bool | None = None,
        encoder: Literal["lm", "embeddings"] | None = None,
        choice: Literal["learned", "random", "uniform"] = "learned",
        shift: bool = True,
        reparametrise: bool = False,
        weights: Mapping[str, float] | None = None,
        selection: Literal["hard", "mixture"] = "hard",
        steps: int = 400,
        batches: int = 1,
        random_state: int = 0,
    ) -> None:
        self.lm = lm
        self.recipe = recipe
        self.n_prompts = n_prompts
        self.n_tokens = n_tokens
        self.shared = shared
        self.placement = placement
        self.deep = deep
        self.encoder = encoder
        self.choice = choice
        self.shift = shift
        self.reparametrise = reparametrise
        self.weights = weights
        self.selection = selection
        self.steps = steps
        self.batches = batches
        self.random_state = random_state

    # learning --------------------------------------------------------------------------------------------------
    def fit(
        self,
        dialogues: Dialogues,
        people: People | None = None,
        checkpoint: Path | str | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> Selective:
        """Train on dialogues: the turns of those who have persona sentences, or of everybody where nobody has.

        Parameters
        ----------
        people : mapping of speaker to Persona, or function of an Example to one, optional
            An `OpinionModel` that knows the speakers or any other mapping, or ``Speakers.elsewhere``; everybody whose
            turns are learned needs a vector, and it must not come from those turns.
        checkpoint : path, optional
            A file, replaced at intervals; ``resume`` goes on from it to the same result.
        """
        self._settle()
        if people is not None and self.recipe == "paper":
            raise ValueError("the paper's bank knows nothing of people; fit it without them, or take recipe='mixture'")
        task = RepliesTask(
            self.lm_,
            dialogues,
            people,
            self.placement_,
            self.encoder_,
            self.recipe,
            self.choice,
            self.selection == "mixture",
            self.weights_,
            self.steps,
            self.random_state,
        )
        waiting = Console(stderr=True, quiet=not progress).status("the language model reads some dialogues")
        with torch.random.fork_rng(devices=[]), waiting:
            torch.manual_seed(self.random_state)
            n_person = 0 if people is None else len(task.persona(task.turns.learned[0]).vector)
            task.network = self.network_ = self._build(n_person).to(self.lm_.device)
            task.start()
        decay = 1e-2 if self.recipe == "mixture" else 0.0
        schedule = Schedule(steps=self.steps, weight_decay=decay, seed=self.random_state, batches=self.batches)
        path = None if checkpoint is None else Path(checkpoint)
        self.history_ = train(task, schedule, path, resume, progress)
        self.lm_fingerprint_ = self.lm_.fingerprint
        return self

    @property
    def effective_prompts_(self) -> float:
        """How many prompts are in use on held-out dialogues, 1 to K."""
        return best_figures(self.history_)["prompts in use"]

    @property
    def collapsed_(self) -> bool:
        """Whether a bank of several prompts is in truth one: fewer than 1.1 of them are in use."""
        return self.n_prompts > 1 and self.effective_prompts_ < COLLAPSED

    def _settle(self) -> None:
        for name, value, known in (
            ("recipe", self.recipe, ("mixture", "paper")),
            ("choice", self.choice, ("learned", "random", "uniform")),
            ("selection", self.selection, ("hard", "mixture")),
            ("encoder", self.encoder, (None, "lm", "embeddings")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {' or '.join(map(repr, filter(None, known)))}, not {value!r}")
        for name, number in (
            ("steps", self.steps),
            ("batches", self.batches),
            ("n_prompts", self.n_prompts),
            ("n_tokens", self.n_tokens),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}; it is at least 1")
        paper = self.recipe == "paper"
        self.placement_: Placement = self.placement or ("before" if paper else "late")
        self.encoder_ = self.encoder or ("embeddings" if paper else "lm")
        if paper and (self.placement_ == "prefix" or self.encoder_ != "embeddings" or self.choice != "learned"):
            raise ValueError(
                "the paper's retriever compares prompts with word embeddings; it goes with encoder='embeddings', "
                "choice='learned' and any placement but 'prefix'"
            )
        shallow = paper or self.placement_ == "prefix" or self.reparametrise
        self.deep_ = not shallow if self.deep is None else self.deep
        if self.deep_ and shallow:
            raise ValueError(
                "deep=True corrects virtual tokens that stand in the text, ours; it does not go with recipe='paper', "
                "placement='prefix' or reparametrise=True"
            )
        if self.choice == "uniform" and self.selection == "hard":
            raise ValueError("an even mixture has no most probable prompt; use selection='mixture' with it")
        shared = _SHARED[self.recipe] if self.shared is None else self.shared
        if not 0 <= shared <= 1:
            raise ValueError(f"shared is {shared}; it is a share of the bank's tokens, from 0 to 1")
        own = self.n_tokens if self.n_prompts == 1 else max(1, round((1 - shared) * self.n_tokens))
        self.shared_ = 1 - own / self.n_tokens
        unknown = sorted(set(self.weights or {}) - set(_WEIGHTS[self.recipe]))
        if unknown:
            raise ValueError(f"the {self.recipe} recipe has no loss {unknown[0]}; it has {', '.join(self._known())}")
        self.weights_ = {**_WEIGHTS[self.recipe], **(self.weights or {})}
        self.lm_ = self.lm if isinstance(self.lm, FrozenLM) else FrozenLM.load(self.lm)

    def _known(self) -> list[str]:
        return list(_WEIGHTS[self.recipe])

    def _build(self, n_person: int, deep_shift: bool = True) -> SelectiveNetwork:
        h, paper = self.lm_.hidden_size, self.recipe == "paper"
        n_context = 2 * h if self.encoder_ == "lm" else h
        shift = n_context if self.shift and not paper else 0
        own = round((1 - self.shared_) * self.n_tokens)
        bank = PromptBank(
            self.lm_,
            self.n_prompts,
            own,
            self.n_prompts * (self.n_tokens - own),
            self.placement_ == "prefix",
            self.deep_,
            deep_shift,
            shift,
            n_person,
            learned_start=not paper,
            reparametrise=self.reparametrise,
        )
        retriever = PaperRetriever(h) if paper else Retriever(self.n_prompts, n_context, n_person)
        return SelectiveNetwork(bank, retriever, n_context, n_person)

    # choosing --------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def choose(self, chats: Sequence[Sequence[Message]], personas: Sequence[Persona] | None = None) -> np.ndarray:
        """Probability of each prompt for chats, float32 (n, K)."""
        found = [log_choice(self.network_, batch, self.choice) for batch in self._batches(chats, personas)]
        return torch.cat(found).exp().cpu().numpy()

    @torch.no_grad()
    def nll(
        self,
        chats: Sequence[Sequence[Message]],
        replies: Sequence[str],
        personas: Sequence[Persona] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """How unlikely replies are.

        Returns
        -------
        float array (n,), int array (n,)
            -log of each reply's probability, in nats, and its tokens, the end of the turn among them.
        """
        ids = [reply_ids(self.lm_, reply) for reply in replies]
        mixture, found, start = self.selection == "mixture", [], 0
        for batch in self._batches(chats, personas):
            batch = batch._replace(replies=ids[start : start + len(batch.h)])
            found.append(reply_nll(self.lm_, self.network_, batch, self.choice, mixture).nll)
            start += len(batch.h)
        return torch.cat(found).cpu().numpy(), np.array([len(i) for i in ids])

    def _batches(self, chats: Sequence[Sequence[Message]], personas: Sequence[Persona] | None) -> Iterator[Batch]:
        """Chats in their order, some at a time; those that begin others of the same pass are computed with them."""
        vectors = self._vectors(personas, len(chats))
        for start in range(0, len(chats), _CHATS):
            some = slice(start, start + _CHATS)
            prompts = [chat_prompt(self.lm_, chat, self.placement_) for chat in chats[some]]
            yield self._batch(prompts, None if vectors is None else vectors[some])

    def _batch(self, prompts: Sequence[Prompt], vectors: Tensor | None) -> Batch:
        prepared = prepare(self.lm_, prompts)
        h, z = self.network_.standardise(represent(self.lm_, prepared, self.encoder_), vectors)
        return Batch(prepared, h, z, [])

    def _vectors(self, personas: Sequence[Persona] | None, n: int) -> Tensor | None:
        """Person vectors (n, D); None where the bank knows nothing of people."""
        wanted = self.network_.n_person
        if not wanted:
            return None
        if personas is None or len(personas) != n:
            raise ValueError(f"this bank was trained with person vectors: give a persona for each of {n} chats")
        for persona in personas:
            if len(persona.vector) != wanted:
                raise ValueError(
                    f'persona "{persona.name}" has {len(persona.vector)} numbers, but this bank was trained with '
                    f"vectors of {wanted}: take personas of the model it was trained with"
                )
        return torch.as_tensor(np.stack([p.vector for p in personas])).float().to(self.lm_.device)

    # answering and talking -------------------------------------------------------------------------------------
    @torch.no_grad()
    def rows(self, chats: Sequence[Sequence[Message]], personas: Sequence[Persona] | None = None) -> ChatRows:
        """What the LM is to continue in each of several chats: one row with the chat's most probable prompt, or with
        ``selection="mixture"`` a row for each prompt."""
        return ChatRows.together([self.rows_of(batch) for batch in self._batches(chats, personas)])

    @torch.no_grad()
    def rows_of(self, batch: Batch) -> ChatRows:
        """`rows` of contexts that were read."""
        log_p = log_choice(self.network_, batch, self.choice)
        hard = self.selection == "hard"
        virtual = self.network_.bank(batch.h, batch.z, log_p.argmax(1, keepdim=True) if hard else None)
        each, prepared = 1 if hard else self.n_prompts, batch.prepared
        return ChatRows(
            [prompt for prompt in prepared.prompts for _ in range(each)],
            virtual.flatten(0, 1) if isinstance(virtual, Tensor) else virtual,  # key/values are rows already
            None if hard else log_p,
            None if prepared.parts is None else [part for part in prepared.parts for _ in range(each)],
        )

    def chat_rows(self, messages: Sequence[Message], personas: Sequence[Persona]) -> ChatRows:
        """See `Steerer`."""
        return self.rows([messages] * len(personas), personas)

    @torch.no_grad()
    def predict_proba(
        self, personas: Sequence[Persona], questions: Sequence[Question], read: str = "letters"
    ) -> np.ndarray:
        """See `Steerer`; a bank that was trained without people answers alike as everybody."""
        check_read(read)
        if not personas:
            raise ValueError("nobody is asked; give at least one persona")
        vectors = self._vectors(personas, len(personas))
        put = letters_prompt if read == "letters" else text_prompt
        out = np.zeros((len(personas), len(questions), max(len(q.options) for q in questions)), dtype=np.float32)
        for j, question in enumerate(questions):
            prompt = put(self.lm_, question.text, question.options, self.placement_)
            found = [self._option_probabilities(prompt, question, z, read) for z in _some(vectors)]
            out[:, j, : len(question.options)] = torch.cat(found).cpu().numpy()
        return out

    def _option_probabilities(self, prompt: Prompt, question: Question, vectors: Tensor | None, read: str) -> Tensor:
        """One question's option probabilities (N, K) of some people, or (1, K) where all are alike."""
        n = 1 if vectors is None else len(vectors)
        batch = self._batch([prompt] * n, vectors)
        log_p = log_choice(self.network_, batch, self.choice)
        hard = self.selection == "hard"
        chosen = log_p.argmax(1, keepdim=True) if hard else None
        weight = torch.ones_like(log_p[:, :1]) if hard else log_p.exp()  # (n, N)
        virtual = self.network_.bank(batch.h, batch.z, chosen)
        logits = option_logits(self.lm_, batch.prepared, virtual, [question.options] * n, read)
        return (weight[:, :, None] * torch.softmax(logits, -1)).sum(1)

    # files -----------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """``network.safetensors`` and ``steerer.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {n: v.contiguous().cpu() for n, v in self.network_.state_dict().items()}
        save_file(weights, folder / "network.safetensors")
        about = {
            "method": self.method,
            "parameters": {**self.get_params(deep=False), "lm": self.lm_.name},
            "placement": self.placement_,
            "deep": self.deep_,
            "encoder": self.encoder_,
            "shared": self.shared_,
            "n_person": self.network_.n_person,
            "lm": self.lm_fingerprint_,
            "history": self.history_,
        }
        (folder / "steerer.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path | str, lm: str | FrozenLM | None = None) -> Selective:
        """Open what `save` wrote.

        Raises
        ------
        ValueError
            The LM is not the one it was trained with.
        """
        folder = Path(folder)
        about: dict[str, Any] = json.loads((folder / "steerer.json").read_text())
        self = cls(**{**about["parameters"], **({} if lm is None else {"lm": lm})})
        self._settle()
        self.placement_, self.encoder_ = about["placement"], about["encoder"]
        # Banks of earlier versions share nothing, are not deep, or shift only what is at the input.
        self.shared_, self.deep_ = about.get("shared", 0.0), about.get("deep", False)
        check_lm(self.lm_, about["lm"], folder)
        self.lm_fingerprint_ = self.lm_.fingerprint
        weights = load_file(folder / "network.safetensors")
        with torch.random.fork_rng(devices=[]):  # numbers that are replaced at once
            self.network_ = self._build(about["n_person"], "bank.out_deeper.weight" in weights)
        self.network_.load_state_dict(weights)
        self.network_.to(self.lm_.device).eval()
        self.history_ = about["history"]
        return self


def _some(vectors: Tensor | None) -> Sequence[Tensor | None]:
    return [None] if vectors is None else vectors.split(_CHATS)
