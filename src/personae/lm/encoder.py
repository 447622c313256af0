"""`SentenceEncoder`: texts as unit vectors whose dot product says how alike they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from personae.lm.names import ModelNotFound, no_bars, resolve

_STEPS = {"Transformer", "Pooling", "Normalize"}  # of a sentence-transformers model that this class computes


class SentenceEncoder:
    """Mean of a transformer's last hidden states over a text's tokens, scaled to length one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder in float32.
    tokenizer : transformers.PreTrainedTokenizerBase
    name : str
        What it is called in messages.
    max_tokens : int, optional
        Word pieces read of a text, those that the tokenizer adds included; the model's and tokenizer's maximum where
        None.

    Attributes
    ----------
    hidden_size : int
        Width H of the vectors.
    max_tokens : int
        The rest of a longer text is not read.

    Notes
    -----
    v = sum_t h_t / |sum_t h_t|, the recipe of all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv 1908.10084). That
    model reads 256 word pieces, as its own configuration says, about 200 words of English.

    Examples
    --------
    The encoder here is a tiny random one, so that the example runs in a moment.

    >>> from transformers import BertConfig, BertModel
    >>> from personae.lm.tiny import tiny_tokenizer
    >>> size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    >>> encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=340, **size)), tiny_tokenizer())
    >>> v = encoder.encode(["A tax on sugar.", "Should sugar be taxed?", "A tax on sugar."])
    >>> v.shape, bool(v[0] @ v[2] > v[0] @ v[1])
    ((3, 32), True)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "encoder",
        max_tokens: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.hidden_size: int = model.config.hidden_size
        positions = getattr(model.config, "max_position_embeddings", None)
        self.max_tokens = min(n for n in (max_tokens, positions, tokenizer.model_max_length) if n)

    @classmethod
    def load(cls, name: str = "minilm", device: str = "auto") -> SentenceEncoder:
        """Load by short name, local folder or hub id.

        Parameters
        ----------
        name : str
            ``"minilm"`` is all-MiniLM-L6-v2 (22 million parameters, H = 384) and needs no model hub.
        device : str
            ``"auto"``: the first GPU if there is one, else the CPU.

        Raises
        ------
        ModelNotFound
            There is no such model, it is not in safetensors format, or its own recipe is another than mean pooling.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return _load(str(resolve(name, "sentence encoder")), name, device)

    @torch.no_grad()
    def encode(self, texts: str | Sequence[str], batch: int = 64) -> np.ndarray:
        """Vectors of texts.

        Parameters
        ----------
        texts : str or sequence of str
            Names of special tokens in them stay plain text.
        batch : int
            Texts of one pass; they are taken by length, and padding is not seen.

        Returns
        -------
        float32 array, shape (n, H)
            Rows of length one, so that a dot product is a cosine. A text's vector does not depend on the others beyond
            rounding (1e-6). Nothing is like a text without tokens: its row is zero, where the tokenizer adds none.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = np.zeros((len(texts), self.hidden_size), dtype=np.float32)
        pad = self.tokenizer.pad_token_id or 0  # never seen
        ids = self._tokens(texts)
        order = sorted((i for i in range(len(texts)) if len(ids[i])), key=lambda i: len(ids[i]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens = pad_sequence([ids[i] for i in rows], batch_first=True, padding_value=pad)  # (B, T)
            seen = pad_sequence([torch.ones_like(ids[i]) for i in rows], batch_first=True)  # (B, T)
            tokens, seen = tokens.to(self.model.device), seen.to(self.model.device)
            hidden = self.model(input_ids=tokens, attention_mask=seen).last_hidden_state  # (B, T, H)
            out[rows] = normalize((hidden * seen[:, :, None]).sum(1), dim=-1).cpu().numpy()
        return out

    def _tokens(self, texts: list[str]) -> list[torch.Tensor]:
        if not texts:
            return []
        how = {"truncation": True, "max_length": self.max_tokens, "padding": False, "split_special_tokens": True}
        return [torch.tensor(ids, dtype=torch.long) for ids in self.tokenizer(texts, **how)["input_ids"]]


@lru_cache(maxsize=2)  # one encoder serves everything in a process
def _load(folder: str, name: str, device: str) -> SentenceEncoder:
    """Only numbers and text are read: no pickled weights, no code that comes with a model."""
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        max_tokens = _check_recipe(Path(folder), name)
        with no_bars():
            model, about = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **safe
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelNotFound(f"{name} cannot be loaded as a text encoder in safetensors format: {reason}") from error
    if model.config.is_encoder_decoder:
        raise ModelNotFound(f"{name} is an encoder with a decoder; take an encoder alone, such as minilm")
    missing = sorted(key for key in about["missing_keys"] if not key.startswith("pooler."))  # which is not used here
    if missing:  # they would be random numbers
        raise ModelNotFound(f"{name} lacks weights of its architecture: {', '.join(missing[:3])}")
    return SentenceEncoder(model.to(device), tokenizer, name, max_tokens)


def _check_recipe(folder: Path, name: str) -> int | None:
    """The maximum of tokens by the files of sentence-transformers, if there are any; another recipe is refused."""
    modules = _read(folder / "modules.json") or []
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    pooling = _read(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else None
    modes = {key for key, on in (pooling or {}).items() if key.startswith("pooling_mode_") and on}
    other = sorted({*kinds} - _STEPS) + sorted(modes - {"pooling_mode_mean_tokens"})
    if other:
        raise ModelNotFound(
            f"{name} makes its vectors in a way personae does not ({', '.join(other)}); "
            "take an encoder by mean pooling, such as minilm"
        )
    return (_read(folder / "sentence_bert_config.json") or {}).get("max_seq_length")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
