"""How alike a reply and the true one are in meaning, by a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from personae.evaluation.replies import same_number
from personae.lm.encoder import SentenceEncoder

_BATCH = 64


def similarity(replies: Sequence[str], references: Sequence[str], encoder: SentenceEncoder) -> np.ndarray:
    """Embedding similarity: cosine of the two texts' vectors, -1 to 1, float array (n,).

    It is no BERTScore, which matches word by word (`BertScore`).

    Examples
    --------
    The encoder here is a tiny random one, so that the example runs in a moment.

    >>> from transformers import BertConfig, BertModel
    >>> from personae.lm.tiny import tiny_tokenizer
    >>> size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=340, **size)), tiny_tokenizer())
    >>> same, other = similarity(["a dog", "a dog"], ["a dog", "why ?"], encoder)
    >>> bool(other < same), round(float(same), 3)
    (True, 1.0)
    """
    same_number(replies, references)
    place = {text: i for i, text in enumerate(dict.fromkeys([*replies, *references]))}  # each text is read once
    vectors = encoder.encode(list(place))  # (texts, H)
    a, b = ([place[text] for text in texts] for texts in (replies, references))
    return (vectors[a] * vectors[b]).sum(1)


class BertScore:
    """BERTScore F1 of pairs of texts, by any encoder in a local folder.

    Parameters
    ----------
    encoder : SentenceEncoder
        Its transformer is used, not its sentence vectors.
    layer : int
        Whose output stands for the words, from 1. The authors chose 9 for bert-base-uncased, 10 for roberta-base, 17
        for roberta-large and 5 for distilbert-base-uncased. A score means nothing without model and layer.

    Notes
    -----
    For unit vectors x_i of the reply's tokens and y_j of the reference's [1]_:

    P = mean_i max_j x_i . y_j,  R = mean_j max_i x_i . y_j,  F = 2 P R / (P + R)

    without idf weights and without rescaling to a baseline: such figures lie close together and high. As in the
    authors' program the special tokens have no weight, but may be what another token is nearest to, and a blank
    text scores 0.

    References
    ----------
    .. [1] Zhang et al., "BERTScore: evaluating text generation with BERT", ICLR 2020, arXiv 1904.09675.

    Examples
    --------
    The encoder here is a tiny random one, so that the example runs in a moment.

    >>> from transformers import BertConfig, BertModel
    >>> from personae.lm.tiny import tiny_tokenizer
    >>> size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    >>> encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=340, **size)), tiny_tokenizer())
    >>> same, other, blank = BertScore(encoder, layer=1)(["a dog", "a dog", ""], ["a dog", "why ?", "a dog"])
    >>> bool(other < same), round(float(same), 3), float(blank)
    (True, 1.0, 0.0)
    """

    def __init__(self, encoder: SentenceEncoder, layer: int) -> None:
        layers = encoder.model.config.num_hidden_layers
        if not 1 <= layer <= layers:
            raise ValueError(f"{encoder.name} has layers 1 to {layers}; layer {layer} is not among them")
        self.encoder, self.layer = encoder, layer

    @classmethod
    def load(cls, folder: str | Path, layer: int) -> BertScore:
        """From a folder of a Hugging Face encoder with safetensors weights; nothing is fetched."""
        if not Path(folder).expanduser().is_dir():
            raise FileNotFoundError(f"{folder} is no folder; BERTScore reads its model from a local one")
        return cls(SentenceEncoder.load(str(folder)), layer)

    def __call__(self, replies: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """F1 of each pair, float32 array (n,), -1 to 1 and mostly above 0."""
        same_number(replies, references)
        out = np.zeros(len(replies), np.float32)
        some = [i for i, pair in enumerate(zip(replies, references, strict=True)) if all(text.strip() for text in pair)]
        for start in range(0, len(some), _BATCH):
            rows = some[start : start + _BATCH]
            out[rows] = self._scores([replies[i] for i in rows], [references[i] for i in rows])
        return out

    @torch.no_grad()
    def _scores(self, replies: Sequence[str], references: Sequence[str]) -> np.ndarray:
        x, x_there, x_counts = self._read(replies)  # (B, S, H), (B, S), (B, S)
        y, y_there, y_counts = self._read(references)  # (B, T, H), ...
        alike = x @ y.mT  # (B, S, T)
        precision = _mean(alike.masked_fill(~y_there[:, None, :], -2).amax(2), x_counts)
        recall = _mean(alike.masked_fill(~x_there[:, :, None], -2).amax(1), y_counts)
        return (2 * precision * recall / (precision + recall)).cpu().numpy()

    def _read(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit vectors of the tokens, which of them are there (not padding) and which count (not special)."""
        model, tokenizer = self.encoder.model, self.encoder.tokenizer
        read = tokenizer(
            [" " + text.strip() for text in texts],  # RoBERTa's first word is the one it knows only after a blank
            truncation=True,
            max_length=self.encoder.max_tokens,
            split_special_tokens=True,
            return_special_tokens_mask=True,
        )
        rows = [torch.tensor(ids, dtype=torch.long) for ids in read["input_ids"]]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
        there = pad_sequence([torch.ones_like(r, dtype=torch.bool) for r in rows], batch_first=True)
        special = [torch.tensor(mask, dtype=torch.bool) for mask in read["special_tokens_mask"]]
        counts = there & ~pad_sequence(special, batch_first=True)
        ids, there, counts = (x.to(model.device) for x in (ids, there, counts))
        hidden = model(input_ids=ids, attention_mask=there.long(), output_hidden_states=True).hidden_states[self.layer]
        return normalize(hidden.float(), dim=-1), there, counts


def _mean(best: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return (best * counts).sum(1) / counts.sum(1)
