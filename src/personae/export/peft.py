"""`export_peft`: one persona's virtual tokens as an adapter that plain PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from personae.data.survey import Question
from personae.export.card import adapter_card
from personae.export.prompt import Context, ExportedPrompt, check_method, hub_id, new_folder
from personae.lm.prompts import letters_prompt
from personae.people.persona import Persona


def export_peft(steerer: Any, persona: Persona, folder: Path | str, context: Context | None = None) -> dict[str, Any]:
    """Write a persona's virtual tokens as a PEFT adapter.

    Placement ``before`` becomes a prompt-tuning adapter, ``prefix`` a prefix-tuning one. PEFT puts both in front of
    whatever text it is given, and computes the logits that personae computes.

    Parameters
    ----------
    steerer : PersonaPrompt
    persona : Persona
    folder : path
        New or empty; it gets ``adapter_config.json``, ``adapter_model.safetensors`` and a ``README.md``.
    context : Question or list of messages, optional
        Where virtual tokens depend on the context, the one they are made for: the adapter is exact for this context and
        was not trained for others. May be left out where they depend on the person alone; they are then those of
        answers by letter, the same for every question.

    Returns
    -------
    dict
        ``folder``, ``peft_type``, ``num_virtual_tokens``, ``base_model`` (hub id, or None where only this machine has
        the LM), ``exact_for``, ``prompt`` (the text to give to PEFT), ``sharpness`` of the letters and, of a question,
        ``letters`` (letter to token id).

    Raises
    ------
    ValueError
        The virtual tokens do not stand in front, depend on a context that is not given, or are not finite; the LM's
        layers differ in shape; the folder holds something.

    Examples
    --------
    The LM here is a tiny random one, so that the example runs in a moment.

    >>> import tempfile
    >>> from personae import OpinionModel, PersonaPrompt, load_sample
    >>> from personae.lm.tiny import tiny_lm
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> steerer = PersonaPrompt(tiny_lm(), recipe="paper", steps=2).fit(survey, people, progress=False)
    >>> written = export_peft(steerer, people["r0001"], Path(tempfile.mkdtemp()) / "adapter")
    >>> written["peft_type"], written["num_virtual_tokens"], written["exact_for"]
    ('PREFIX_TUNING', 1, 'every question, answered by letter')
    """
    if check_method(steerer).placement_ not in ("before", "prefix"):
        raise ValueError(
            f'this steerer was trained with placement "{steerer.placement_}", and PEFT puts virtual tokens in front of '
            "the text only; train one whose virtual tokens stand there: personae steer BUNDLE --recipe paper (they "
            "then depend on the person alone) or --placement before; requests for vLLM take yours: personae export vllm"
        )
    made = ExportedPrompt.make(steerer, persona, context)
    kind, rows, shape = _as_rows(made)
    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_id(steerer),
        "inference_mode": True,
        "num_virtual_tokens": len(rows),
        "num_transformer_submodules": 1,
        **shape,
    }
    about = {
        "persona": persona.name,
        "peft_type": kind,
        "num_virtual_tokens": len(rows),
        "base_model": config["base_model_name_or_path"],
        "exact_for": _exact_for(made),
        "prompt": _prompt(made),
        "letters": made.letters,
        "sharpness": made.sharpness,
    }
    with new_folder(Path(folder)) as new:
        save_file({"prompt_embeddings": rows}, new / "adapter_model.safetensors", metadata={"format": "pt"})
        (new / "adapter_config.json").write_text(json.dumps(config, indent=1))
        (new / "README.md").write_text(adapter_card(about, made.steerer.lm_fingerprint_), encoding="utf-8")
    return {"folder": Path(folder), **about}


def _as_rows(made: ExportedPrompt) -> tuple[str, torch.Tensor, dict[str, Any]]:
    """PEFT's name of the method, its matrix (T, numbers), and the shape it must not guess."""
    layers = len(made.steerer.lm_.key_shapes)
    if isinstance(made.virtual, torch.Tensor):
        rows = made.virtual.float().cpu().contiguous()  # (T, H)
        return "PROMPT_TUNING", rows, {"num_layers": layers, "token_dim": rows.shape[1]}
    shapes = set(made.steerer.lm_.key_shapes)
    if len(shapes) > 1:
        raise ValueError(
            f"the layers of {made.steerer.lm_.name} differ in the shape of their keys, which a prefix of PEFT cannot; "
            "train with --placement before"
        )
    ((heads, size),) = shapes
    # Per virtual token K0, V0, K1, V1, ...: each (1, Hkv, T, D) as (T, Hkv * D).
    parts = [x[0].transpose(0, 1).flatten(1) for pair in made.virtual for x in pair]
    rows = torch.cat(parts, 1).float().cpu().contiguous()
    shape = {"num_layers": layers, "token_dim": heads * size, "num_attention_heads": heads, "prefix_projection": False}
    return "PREFIX_TUNING", rows, shape


def _prompt(made: ExportedPrompt) -> str:
    """The text of the context, special tokens included; its token ids where no text becomes them."""
    lm, prompt = made.steerer.lm_, made.prompt
    if prompt is None:
        prompt = letters_prompt(lm, "QUESTION", ("FIRST OPTION", "SECOND OPTION"), made.steerer.placement_)
    text = lm.tokenizer.decode(prompt.text_ids, clean_up_tokenization_spaces=False)
    return text if lm.tokens(text, special=True) == prompt.text_ids else f"token ids {prompt.text_ids}"


def _exact_for(made: ExportedPrompt) -> str:
    if made.steerer.recipe != "contextual":
        chat = made.context is not None and not isinstance(made.context, Question)
        return "every chat" if chat else "every question, answered by letter"
    if isinstance(made.context, Question):
        return f"one question, answered by letter: {made.context.text} ({' / '.join(made.context.options)})"
    assert made.context is not None
    return f"one chat, continued: {' '.join(made.context[-1]['content'].split())}"
