"""What a bank of prompts is trained on: the replies of dialogues, each with all that was said before it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from personae.data.dialogues import Dialogues, Example
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import Placement, Prompt, chat_prompt, reply_ids
from personae.lm.reading import KeyValues, Prepared, prepare, read, text_log_probs
from personae.people.persona import Persona
from personae.steering import selection as losses
from personae.steering.turns import Turns, as_messages, person, within

if TYPE_CHECKING:
    from personae.steering.bank import SelectiveNetwork

_STATISTICS = 64  # contexts from which means, scales and the retriever's start are taken
_ROWS = 8  # replies x prompts of one pass where each repeats its whole context
_START, _END = 0.5, 0.1  # temperature of the choice, from the first step to the middle of training


People = Mapping[str, Persona] | Callable[[Example], Persona]
"""Whose vector goes with a reply: by the speaker's name, or by whatever of the example may be known before it."""


class Batch(NamedTuple):
    """B replies and their contexts.

    Attributes
    ----------
    prepared : Prepared
    h : Tensor (B, n_context), the contexts' standardised representation
    z : Tensor (B, n_person), the standardised vectors of who replies, or None
    replies : list of B token lists, the end of the turn included
    """

    prepared: Prepared
    h: Tensor
    z: Tensor | None
    replies: list[list[int]]

    def select(self, some: Sequence[int]) -> Batch:
        """The given replies."""
        at = torch.as_tensor(some, device=self.h.device)
        z = None if self.z is None else self.z[at]
        return Batch(self.prepared.select(some), self.h[at], z, [self.replies[i] for i in some])


def represent(lm: FrozenLM, prepared: Prepared, encoder: str) -> Tensor:
    """A context for the retriever: ``"lm"``, the LM's last and mean hidden state (C, 2H); ``"embeddings"``, the mean of
    its word embeddings (C, H). Neither sees the reply or padding."""
    if encoder == "lm":
        return prepared.representation
    return torch.stack([lm.embed(p.text_ids).float().mean(0) for p in prepared.prompts])


def states(lm: FrozenLM, batch: Batch, virtual: Tensor | KeyValues) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over all contexts x N prompts.

    Returns
    -------
    Tensor (R, N, H), int Tensor (R,), int Tensor (R,)
        The hidden states that predict the R tokens of all replies, those tokens, and whose they are.
    """
    found = read(lm, batch.prepared, virtual, [[reply] for reply in batch.replies])
    hidden = []
    for c, reply in enumerate(batch.replies):
        rest = () if found.branch is None else (found.branch[c][:, : len(reply) - 1],)
        hidden.append(torch.cat([found.trunk[c][:, None], *rest], 1).transpose(0, 1))  # (T, N, H)
    targets = torch.tensor([i for reply in batch.replies for i in reply], device=lm.device)
    lengths = torch.tensor([len(reply) for reply in batch.replies], device=lm.device)
    return torch.cat(hidden), targets, torch.arange(len(lengths), device=lm.device).repeat_interleave(lengths)


class RepliesTask:
    """The training task of `Selective` (a `personae.training.loop.Task`).

    Every step draws a few people and some turns of each, encodes their contexts once, and reads all prompts with the
    reply as continuations.

    Parameters
    ----------
    people : mapping of speaker to Persona, or function of an Example to one, optional
        Whose vectors enter the choice and the prompts.
    weights : mapping of str to float
        Of the recipe's losses.
    steps : int
        Over the first half of them the choice becomes firm.
    """

    network: SelectiveNetwork
    counts = "replies"

    def __init__(
        self,
        lm: FrozenLM,
        dialogues: Dialogues,
        people: People | None,
        placement: Placement,
        encoder: str,
        recipe: str,
        choice: str,
        mixture: bool,
        weights: Mapping[str, float],
        steps: int,
        seed: int,
    ) -> None:
        self.lm, self.people, self.placement, self.encoder = lm, people, placement, encoder
        self.recipe, self.choice, self.mixture, self.weights = recipe, choice, mixture, dict(weights)
        self.steps, self.turns = steps, Turns(dialogues, seed)
        if people is not None and not callable(people):
            for example in {e.speaker: e for e in [*self.turns.learned, *self.turns.held_out]}.values():
                self.persona(example)  # somebody who is missing is said now

    # the Task interface ----------------------------------------------------------------------------------------
    def groups(self) -> list[dict[str, Any]]:
        """The prompts' own numbers learn fast, what chooses slower, what shifts all of them at once slowest."""
        bank, retriever = self.network.bank, self.network.retriever
        parts = [
            ([bank.start, bank.numbers, *([] if bank.deeper is None else [bank.deeper])], 2e-2),
            ([*retriever.parameters(), *_parameters(bank.recurrent)], 1e-3),
            ([p for part in (bank.context, bank.person, bank.out, bank.out_deeper) for p in _parameters(part)], 2e-4),
        ]
        learned = [([p for p in part if p.requires_grad], lr) for part, lr in parts]
        return [{"params": part, "lr": lr} for part, lr in learned if part]

    def identity(self) -> dict[str, Any]:
        """What must be the same to resume."""
        vectors = hashlib.sha256()
        for example in self.turns.learned[:1000] if self.people is not None else ():
            vectors.update(self.persona(example).vector.tobytes())
        return {
            "dialogues": self.turns.fingerprint,
            "people": vectors.hexdigest(),
            "lm": self.lm.fingerprint,
            "recipe": [self.recipe, self.choice, self.mixture, self.encoder, self.placement, self.weights],
            "weights": {name: list(value.shape) for name, value in self.network.state_dict().items()},
        }

    def start(self) -> None:
        """Take the network's statistics from some training contexts."""
        learned, seed = self.turns.learned, self.turns.seed
        some = [learned[i] for i in np.random.default_rng(seed).permutation(len(learned))[:_STATISTICS]]
        prepared = prepare(self.lm, [self._prompt(e) for e in some])
        self.network.learn_statistics(represent(self.lm, prepared, self.encoder), self._vectors(some), seed)

    def losses(self, step: int, batch: int = 0) -> Iterator[tuple[Tensor, int]]:
        """The recipe's loss of one batch: what each reply adds, then what they add by being together."""
        examples = self.turns.draw(step, batch)
        fall = min(1.0, 2 * step / self.steps)
        self.network.temperature.fill_(_START * (_END / _START) ** fall)
        paper, whole = self.recipe == "paper", self.batch(examples)
        for some in self._passes(whole):
            part = whole.select(some)
            loss = self._paper(part) if paper else self._ours(part)
            yield loss * len(some) / len(examples), len(some)
        if paper:
            yield self._paper_together(whole, examples), 0
        elif self.choice == "learned" and len(self.network.bank) > 1:
            yield self._ours_together(whole, examples), 0

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL a token of held-out replies as the steerer would speak them, and how many prompts are in use."""
        nll, tokens, chosen = 0.0, 0, []
        for start in range(0, len(self.turns.held_out), 16):
            batch = self.batch(self.turns.held_out[start : start + 16])
            found = reply_nll(self.lm, self.network, batch, self.choice, self.mixture)
            nll, tokens = nll + found.nll.sum().item(), tokens + sum(map(len, batch.replies))
            chosen.append(found.log_p if self.mixture else certain(found.log_p.argmax(1), found.log_p.shape[1]))
        return {"nll": nll / tokens, "prompts in use": losses.effective_prompts(torch.cat(chosen)).item()}

    # pieces ----------------------------------------------------------------------------------------------------
    def batch(self, examples: Sequence[Example]) -> Batch:
        """Contexts, encoded once each, and replies as tokens."""
        prepared = prepare(self.lm, [self._prompt(e) for e in examples])
        h, z = self.network.standardise(represent(self.lm, prepared, self.encoder), self._vectors(examples))
        return Batch(prepared, h, z, [reply_ids(self.lm, e.reply) for e in examples])

    def persona(self, example: Example) -> Persona:
        """Who replies."""
        assert self.people is not None
        if callable(self.people):
            return self.people(example)
        if example.speaker not in self.people:
            raise ValueError(
                f'nobody called "{example.speaker}" is among the {len(self.people):,} people given, and their turns in '
                f"dialogue {example.dialogue} are to be learned; give a persona for everybody who replies"
            )
        return self.people[example.speaker]

    def _prompt(self, example: Example) -> Prompt:
        return chat_prompt(self.lm, as_messages(within(self.lm, example)), self.placement)

    def _vectors(self, examples: Sequence[Example]) -> Tensor | None:
        if self.people is None:
            return None
        vectors = np.stack([self.persona(e).vector for e in examples])
        return torch.as_tensor(vectors, dtype=torch.float32, device=self.lm.device)

    def _passes(self, batch: Batch) -> list[list[int]]:
        """Which replies are read in one pass: all where their prompts share a context. Where each prompt has a row with
        the whole context, a few of similar length, since what a gradient needs of a row is large."""
        everybody = list(range(len(batch.replies)))
        if batch.prepared.parts is not None:
            return [everybody]
        order = sorted(everybody, key=lambda i: len(batch.prepared.prompts[i].text_ids))
        n = max(1, _ROWS // (1 if self.choice == "random" else len(self.network.bank)))
        return [order[start : start + n] for start in range(0, len(order), n)]

    def _ours(self, batch: Batch) -> Tensor:
        """The likelihood under what speaks, one prompt or their mixture."""
        network, k = self.network, len(self.network.bank)
        if self.choice == "random":
            chosen = random_choice(batch.prepared.prompts, k).to(self.lm.device)
            return prompt_nlls(self.lm, batch, network.bank(batch.h, batch.z, chosen[:, None])).mean()
        log_p = log_choice(network, batch, self.choice)
        nll = prompt_nlls(self.lm, batch, network.bank(batch.h, batch.z), network.bank.n_shared)
        if not self.mixture:
            return losses.expected_loss(log_p, nll)
        n_tokens = torch.tensor([len(reply) for reply in batch.replies], device=self.lm.device)
        return losses.mixture_loss(log_p, nll, n_tokens)

    def _ours_together(self, batch: Batch, examples: Sequence[Example]) -> Tensor:
        """Balanced use, and turns of one person close together."""
        numbers = torch.tensor(_numbers(person(e) for e in examples))
        queries = self.network.retriever.queries(batch.h, batch.z)  # type: ignore[operator]
        contrast = losses.person_contrast(queries, losses.same_person(numbers).to(queries.device))
        balance = losses.load_balance(log_choice(self.network, batch, self.choice))
        return self.weights["balance"] * balance + self.weights["contrast"] * contrast

    def _paper(self, batch: Batch) -> Tensor:
        """As published, with `_paper_together`: ``lm + fusion + lambda (selection + contrastive)``."""
        network, weights = self.network, self.weights
        scores = network.retriever.scores(batch.h, network.bank.prompts())  # type: ignore[operator]
        hidden, targets, reply = states(self.lm, batch, network.bank(batch.h, batch.z))
        nll, fused = losses.reply_nlls(self.lm.logits, hidden, targets, reply, scores)
        fit = weights["lm"] * losses.lm_loss(nll) + weights["fusion"] * losses.fusion_loss(fused)
        return fit + weights["selection"] * losses.selection_loss(scores, nll)

    def _paper_together(self, batch: Batch, examples: Sequence[Example]) -> Tensor:
        """Like personas are to have like scores."""
        scores = self.network.retriever.scores(batch.h, self.network.bank.prompts())  # type: ignore[operator]
        alike = persona_similarity([e.persona for e in examples]).to(scores.device)
        return self.weights["contrastive"] * losses.contrastive_loss(scores, alike)


def prompt_nlls(lm: FrozenLM, batch: Batch, virtual: Tensor | KeyValues, shared: int = 0) -> Tensor:
    """NLL a token (B, N) of each reply under each of its context's N prompts, whose first tokens may be shared."""
    branches = [[reply] for reply in batch.replies]
    return -torch.stack(text_log_probs(lm, read(lm, batch.prepared, virtual, branches, shared), branches))[:, :, 0]


def log_choice(network: SelectiveNetwork, batch: Batch, choice: str) -> Tensor:
    """log p (B, K) of the prompts, finite: learned, the same for all, or all but certain for one at random."""
    b, k = len(batch.h), len(network.bank)
    if choice == "learned":
        return network.choose(batch.h, batch.z)
    if choice == "uniform":
        return torch.full((b, k), -float(np.log(k)), device=batch.h.device)
    return certain(random_choice(batch.prepared.prompts, k).to(batch.h.device), k)


def certain(prompt: Tensor, k: int) -> Tensor:
    """Finite log p (B, K) of a choice that is as good as made, from the prompt of each context (B,)."""
    return torch.log_softmax(100 * nn.functional.one_hot(prompt, k).float(), -1)


def random_choice(prompts: Sequence[Prompt], k: int) -> Tensor:
    """A prompt of the bank for each context, drawn by a hash of its tokens: random, yet the same tomorrow."""
    drawn = [hashlib.sha256(np.array(p.text_ids, dtype=np.int64).tobytes()).digest()[0] % k for p in prompts]
    return torch.tensor(drawn)


class ReplyNLL(NamedTuple):
    """How unlikely B replies are.

    Attributes
    ----------
    nll : Tensor (B,)
        -log of each reply's probability, in nats.
    log_p : Tensor (B, K)
        Of the choice.
    each : Tensor (B, K) or None
        -log of each reply's probability under each prompt, where all of them are mixed.
    """

    nll: Tensor
    log_p: Tensor
    each: Tensor | None = None


def reply_nll(lm: FrozenLM, network: SelectiveNetwork, batch: Batch, choice: str, mixture: bool) -> ReplyNLL:
    """How unlikely replies are under the chosen prompt; with ``mixture`` under all, weighted by the choice."""
    log_p = log_choice(network, batch, choice)
    n_tokens = torch.tensor([len(reply) for reply in batch.replies], device=lm.device)
    if not mixture:
        chosen = log_p.argmax(1, keepdim=True)
        return ReplyNLL(prompt_nlls(lm, batch, network.bank(batch.h, batch.z, chosen))[:, 0] * n_tokens, log_p)
    each = n_tokens[:, None] * prompt_nlls(lm, batch, network.bank(batch.h, batch.z), network.bank.n_shared)
    return ReplyNLL(-(log_p - each).logsumexp(1), log_p, each)


def persona_similarity(personas: Sequence[Sequence[str]]) -> Tensor:
    """BLEU (B, B), 0 to 100, between personas' sentences, as the paper's contrast reads it.

    Examples
    --------
    >>> tea, dog = ["i like green tea a lot ."], ["my dog barks ."]
    >>> persona_similarity([tea, tea, dog]) > 20
    tensor([[ True,  True, False],
            [ True,  True, False],
            [False, False,  True]])
    """
    try:
        from sacrebleu import sentence_bleu
    except ImportError as error:
        raise ImportError("the paper's recipe compares personas by BLEU; pip install 'personae[eval]'") from error
    texts = [" ".join(p) for p in personas]
    return torch.tensor([[sentence_bleu(a, [b]).score if a and b else 0.0 for b in texts] for a in texts])


def _parameters(part: nn.Module | None) -> list[nn.Parameter]:
    return [] if part is None else list(part.parameters())


def _numbers(names: Iterator[Any]) -> list[int]:
    known: dict[Any, int] = {}
    return [known.setdefault(name, len(known)) for name in names]
