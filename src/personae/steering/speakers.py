"""`Speakers`: person vectors of people who talk, from what they said elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA

from personae.data.dialogues import Dialogues, Example
from personae.lm.encoder import SentenceEncoder
from personae.people.persona import Persona


class Speakers(BaseEstimator):
    """A vector for everybody who speaks, with its uncertainty; more for whoever said more.

    Parameters
    ----------
    encoder : str or SentenceEncoder
        Reads the messages.
    n_components : int
        Numbers D of a vector.

    Attributes
    ----------
    between_, within_ : array (D,)
        Variances of people's means, and of one's messages around one's mean.
    names_ : list of str
        Everybody whose messages were read.

    Notes
    -----
    With e the principal components of a message's embedding, of speaker i and message m::

        e_im = s_i + noise,   s_i ~ N(0, between),   noise ~ N(0, within)

    The vector of somebody with n messages is the posterior mean of s, ``between / (between + within / n)`` times the
    messages' mean, and its covariance the posterior's: somebody who said little is drawn to everybody's mean and is
    visibly uncertain. Both variances are those of a random-effects analysis of variance.

    Examples
    --------
    The encoder here is a tiny random one, so that the example runs in a moment.

    >>> from transformers import BertConfig, BertModel
    >>> from personae.data.dialogues import Dialogue, Turn
    >>> from personae.lm.tiny import tiny_tokenizer
    >>> size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=340, **size)), tiny_tokenizer())
    >>> talks = [(Turn("ann", f"I like tea {i}."), Turn("bob", f"My dog is {i}.")) for i in range(5)]
    >>> speakers = Speakers(encoder, n_components=2)
    >>> speakers = speakers.fit(Dialogues([Dialogue(str(i), turns) for i, turns in enumerate(talks)]))
    >>> ann, somebody = speakers["ann"], speakers.fold_in(["I like tea."])
    >>> ann.vector.shape, ann.uncertainty < somebody.uncertainty
    ((2,), True)
    """

    def __init__(self, encoder: str | SentenceEncoder = "minilm", n_components: int = 16) -> None:
        self.encoder = encoder
        self.n_components = n_components

    def fit(self, dialogues: Dialogues) -> Speakers:
        """Read every message of everybody.

        Raises
        ------
        ValueError
            Fewer than two people speak more than once: nothing tells people from their moods.
        """
        self.encoder_ = (
            self.encoder if isinstance(self.encoder, SentenceEncoder) else SentenceEncoder.load(self.encoder)
        )
        turns = [(turn.speaker, dialogue.id, turn.text) for dialogue in dialogues for turn in dialogue.turns]
        self.names_ = list(dialogues.speakers)
        code = {name: i for i, name in enumerate(self.names_)}
        who = np.array([code[name] for name, _, _ in turns])
        n = np.bincount(who, minlength=len(self.names_))  # messages of each
        if (n > 1).sum() < 2:
            raise ValueError("at least two people must say more than one thing, or there is no telling them apart")
        embeddings = self.encoder_.encode([text for _, _, text in turns])
        self.pca_ = PCA(min(self.n_components, *embeddings.shape), svd_solver="full").fit(embeddings)
        e = self.pca_.transform(embeddings)  # (messages, D)
        sums = np.zeros((len(n), e.shape[1]))
        np.add.at(sums, who, e)
        means = sums / n[:, None]
        self.within_ = ((e - means[who]) ** 2).sum(0) / (len(e) - len(n))
        spread = (n[:, None] * means**2).sum(0) / (len(n) - 1)
        usual = (n.sum() - (n**2).sum() / n.sum()) / (len(n) - 1)  # messages of somebody, as the analysis weighs them
        self.between_ = np.maximum((spread - self.within_) / usual, 1e-6 * self.within_)
        said: dict[tuple[int, str], list[int]] = defaultdict(list)
        for row, (name, dialogue, _) in enumerate(turns):
            said[code[name], dialogue].append(row)
        self._code, self._sums, self._n = code, sums, n
        self._in_dialogue = {key: (e[rows].sum(0), len(rows)) for key, rows in said.items()}
        return self

    def __getitem__(self, name: str) -> Persona:
        """A speaker by name, from all that was read of them."""
        i = self._row(name)
        return self._persona(name, self._sums[i], int(self._n[i]))

    def elsewhere(self, example: Example) -> Persona:
        """Who replies in an example, from what they said in *other* dialogues: what a reply may be predicted from."""
        i = self._row(example.speaker)
        here, count = self._in_dialogue.get((i, example.dialogue), (0.0, 0))
        return self._persona(example.speaker, self._sums[i] - here, int(self._n[i]) - count)

    def fold_in(self, messages: Sequence[str], name: str = "you") -> Persona:
        """Somebody new, from their messages."""
        e = self.pca_.transform(self.encoder_.encode(list(messages))) if messages else np.zeros((0, len(self.within_)))
        return self._persona(name, e.sum(0), len(e))

    def _row(self, name: str) -> int:
        if name not in self._code:
            raise ValueError(f'nobody named "{name}" was read; fold somebody new in by their messages')
        return self._code[name]

    def _persona(self, name: str, total: np.ndarray, n: int) -> Persona:
        precision = 1 / self.between_ + n / self.within_
        vector = (total / self.within_) / precision
        origin = {"kind": "speaker", "messages": n}
        return Persona(name, vector, np.diag(1 / precision), float(self.between_.sum()), origin)
