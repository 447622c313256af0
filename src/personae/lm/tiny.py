"""Tiny random LMs for tests and examples: every architecture, no download, a tenth of a second."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from personae.lm.frozen import FrozenLM

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = "Question: Should we spend more on roads, schools or the army? A. yes B. no Answer: A person would say so. "


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on one sentence, with a chat template if wanted."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT * 4], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": special[1:]})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_lm(architecture: str = "llama", chat: bool = True, seed: int = 0, **config: object) -> FrozenLM:
    """A random `FrozenLM` of about 40 k parameters in float32.

    Parameters
    ----------
    architecture : str
        A transformers model type: ``"llama"``, ``"gpt2"``, ``"opt"``, ``"gpt_neox"``, ``"qwen2"``, ``"qwen3"``,
        ``"gemma"``, ``"gemma3_text"``, ...
    **config
        Overrides of its configuration.
    """
    tokenizer = tiny_tokenizer(chat)
    common: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    if architecture == "gpt2":
        common |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            del common[name]
    if architecture == "opt":
        common |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**common, **config}))
    # The usual start of 0.02 makes a tiny LM nearly constant; larger weights make differences visible.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(5.0)
    return FrozenLM(model.float(), tokenizer, f"tiny-{architecture}")
