"""What an LM itself is fine-tuned on, where that is the baseline: replies, each after all that was said before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from personae.data.dialogues import Dialogues, Example
from personae.lm.frozen import FrozenLM
from personae.lm.prompts import chat_prompt, reply_ids
from personae.steering.turns import Turns, as_messages, within

_PASS = 2  # replies of one pass


class TextReplies:
    """The task of fine-tuning an LM on replies (a `personae.training.loop.Task`): every reply in a row of its own.

    Parameters
    ----------
    network : nn.Module
        Holds those parameters of the LM that learn.
    rate : float
        Learning rate.
    """

    network: nn.Module
    counts = "replies"

    def __init__(self, lm: FrozenLM, network: nn.Module, dialogues: Dialogues, rate: float, seed: int) -> None:
        self.lm, self.network, self.rate, self.turns = lm, network, rate, Turns(dialogues, seed)

    def groups(self) -> list[dict[str, Any]]:
        """All alike."""
        return [{"params": list(self.network.parameters()), "lr": self.rate}]

    def identity(self) -> dict[str, Any]:
        """What must be the same to resume."""
        shapes = [list(p.shape) for p in self.network.parameters()]
        return {"dialogues": self.turns.fingerprint, "lm": self.lm.fingerprint, "weights": shapes}

    def losses(self, step: int, batch: int = 0) -> Iterator[tuple[Tensor, int]]:
        """Mean NLL a token, replies weighing alike."""
        examples = self.turns.draw(step, batch)
        for start in range(0, len(examples), _PASS):
            some = examples[start : start + _PASS]
            nll, lengths = self._nll(some)
            yield (nll / lengths).sum() / len(examples), len(some)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NLL a token of held-out replies."""
        nll, tokens = 0.0, 0.0
        for start in range(0, len(self.turns.held_out), 8):
            each, lengths = self._nll(self.turns.held_out[start : start + 8])
            nll, tokens = nll + each.sum().item(), tokens + lengths.sum().item()
        return {"nll": nll / tokens}

    def _nll(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """-log of each reply's probability (B,), and its tokens (B,)."""
        lm = self.lm
        prompts = [chat_prompt(lm, as_messages(within(lm, e)), "before").text_ids for e in examples]
        replies = [reply_ids(lm, e.reply) for e in examples]
        rows = [[*p, *r] for p, r in zip(prompts, replies, strict=True)]
        longest = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=lm.device)  # (B, T)
        hidden = lm.model.base_model(input_ids=padded, use_cache=False).last_hidden_state
        said = torch.cat(
            [hidden[i, len(p) - 1 : len(r) - 1] for i, (p, r) in enumerate(zip(prompts, rows, strict=True))]
        )
        lengths = torch.tensor([len(reply) for reply in replies], device=lm.device)
        targets = torch.tensor([i for reply in replies for i in reply], device=lm.device)
        each = nn.functional.cross_entropy(lm.logits(said), targets, reduction="none")
        whose = torch.arange(len(rows), device=lm.device).repeat_interleave(lengths)
        return each.new_zeros(len(rows)).index_add(0, whose, each), lengths
