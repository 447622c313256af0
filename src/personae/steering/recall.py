"""`Recall`: which of the survey's questions a chat is about, and somebody's answers to them as words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from personae.data.survey import Question
from personae.lm.frozen import FrozenLM
from personae.steering import talk

_TITLE, _OPTION = 8, 6  # tokens of a question's title and of an option
_NEAR = 0.3  # cosine from which a chat is about a question; the same question put in other words has 0.5 to 0.7
_DIRECTIONS, _REST = 256, 1e-3  # of the whitened space, and the share of its largest variance that is taken for noise


class Recall(nn.Module):
    """An answer of somebody's that matters to a chat, as embeddings of the words of a question's title and an option.

    It is the expected answer to the question nearest to the chat, or where none is near, the answer that sets this
    person most apart.

    Parameters
    ----------
    chats : Tensor (Q, F)
        The LM's representation of each question put in a chat.
    marginal : Tensor (Q, K)
        What everybody answers; zero for a question that nobody answered.
    words : Tensor (W, H)
        Embeddings of different tokens; the first, a full stop, fills what is shorter.
    texts : int Tensor (Q, K, L)
        Tokens of each title and option, as rows of ``words``.

    Notes
    -----
    Near is what has a cosine of 0.3 in the whitened space of ``chats``: what all questions have in common (that they
    are questions, how they are put) is most of a representation. One question and one option are told, since a mean of
    words is no word. What sets somebody apart is the largest p log(p / marginal).
    """

    mean: Tensor
    whiten: Tensor
    keys: Tensor
    marginal: Tensor
    words: Tensor
    texts: Tensor

    def __init__(self, chats: Tensor, marginal: Tensor, words: Tensor, texts: Tensor) -> None:
        super().__init__()
        mean = chats.mean(0)
        spread = chats.std(0, correction=0)
        spread = spread.clamp(min=1e-2 * float(spread.mean()) + 1e-8)  # coordinates that never move stay quiet
        _, size, directions = torch.linalg.svd((chats - mean) / spread, full_matrices=False)
        variance = size[:_DIRECTIONS] ** 2 / len(chats)
        whiten = directions[:_DIRECTIONS].T / (variance + _REST * variance[0] + 1e-8).sqrt() / spread[:, None]
        keys = normalize((chats - mean) @ whiten, dim=-1)
        self._set(mean=mean, whiten=whiten, keys=keys, marginal=marginal, words=words, texts=texts)

    @classmethod
    def of(cls, lm: FrozenLM, questions: Sequence[Question], chats: Tensor, marginal: Tensor) -> Recall:
        """Of the questions whose representations (Q, F) in a chat are given."""
        titles = [lm.tokens(f" {talk.inside(q.title or q.text)}")[:_TITLE] for q in questions]
        options = [[lm.tokens(f" {talk.inside(option)}")[:_OPTION] for option in q.options] for q in questions]
        comma, stop = lm.tokens(",")[:1], lm.tokens(".")[:1]
        row = {token: at for at, token in enumerate(dict.fromkeys([*stop, *comma]))}
        texts = torch.zeros(*marginal.shape, _TITLE + 1 + _OPTION, dtype=torch.long)
        for j, (title, each) in enumerate(zip(titles, options, strict=True)):
            for k, option in enumerate(each):
                said = [row.setdefault(token, len(row)) for token in [*title, *comma, *option]]
                texts[j, k, : len(said)] = torch.tensor(said)
        return cls(chats.float().cpu(), marginal.float(), lm.embed(list(row)).float().cpu(), texts)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Recall:
        """What `state_dict` gave."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._set(**state)
        return self

    def _set(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.register_buffer(name, value.contiguous())

    def forward(self, h: Tensor, logits: Tensor, without: Tensor | None = None, said: Tensor | None = None) -> Tensor:
        """Words (C, N, L, H).

        Parameters
        ----------
        h : Tensor (C, F)
            Representations of chats.
        logits : Tensor (C, N, Q, K)
            What N people are expected to answer to each question, -inf beyond its options.
        without : int Tensor (C,), optional
            Questions that chats are not to recall, unless there is no other to tell of; -1 for none.
        said : int Tensor (C, 2), optional
            Question and option of the reply, -1 where it is not known: if the chat recalls this question, this is told.
        """
        cosine = normalize((h - self.mean) @ self.whiten, dim=-1) @ self.keys.T  # (C, Q)
        apart = apartness(logits.log_softmax(-1), self.marginal)  # (C, N, Q, K)
        if without is not None:
            left_out = torch.arange(len(self.keys), device=h.device) == without[:, None]  # (C, Q)
            cosine = cosine.masked_fill(left_out, -1.0)
            others = apart.masked_fill(left_out[:, None, :, None], -torch.inf)
            apart = torch.where(torch.isfinite(others).flatten(2).any(-1)[..., None, None], others, apart)
        near = (cosine >= _NEAR) & (cosine == cosine.max(-1, keepdim=True).values)
        if said is not None:
            named = (said[:, 0] >= 0).nonzero()[:, 0]
            logits = logits.clone()
            logits[named, :, said[named, 0], said[named, 1]] = torch.inf
        # Of the question that is near any option may be expected, else the answer that sets somebody most apart.
        score = torch.where(near[:, None, :, None], logits, apart)
        score = score.masked_fill((near.any(-1, keepdim=True) & ~near)[:, None, :, None], -torch.inf)
        return self.words[self.texts.flatten(0, 1)[score.flatten(2).argmax(-1)]]


def apartness(log_p: Tensor, marginal: Tensor) -> Tensor:
    """How far answers set somebody apart, (..., Q, K): p log(p / marginal), of log-probabilities (..., Q, K).

    -inf for questions that nobody answered, and beyond a question's options.

    >>> apartness(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    tensor([[ 0.0000,  0.0000],
            [ 0.5290, -0.1609]])
    """
    weight = log_p.exp() * (log_p - marginal.clamp(min=1e-9).log())
    return torch.where(torch.isfinite(log_p) & (marginal.sum(-1, keepdim=True) > 0), weight, -torch.inf)
