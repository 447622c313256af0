"""`FrozenLM`: any Hugging Face causal LM, its weights never trained, read and steered by embeddings."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from personae.lm import shared_context
from personae.lm.deep import Corrections
from personae.lm.names import ModelNotFound, no_bars, resolve
from personae.lm.shared_context import Context
from personae.lm.template import Template

log = logging.getLogger(__name__)


class FrozenLM:
    """A causal language model in evaluation mode, without gradients of its own.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder-only LM.
    tokenizer : transformers.PreTrainedTokenizerBase
    name : str
        What the LM is called in messages and manifests.

    Attributes
    ----------
    hidden_size : int
        Width H of the input embeddings, the space of virtual tokens.
    shared : bool
        Whether the shared-context engine serves this LM (checked on a tiny input when it is loaded);
        where it does not, rows are run one by one, which is slower and equal.

    Examples
    --------
    >>> from personae.lm.tiny import tiny_lm
    >>> lm = tiny_lm("llama")
    >>> lm.hidden_size, lm.shared
    (32, True)
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "lm") -> None:
        self.model = model.eval().requires_grad_(False)
        if self.split:
            model.base_model.register_forward_hook(_bring_home)
        self.tokenizer = tokenizer
        self.name = name
        self.template = Template(tokenizer)
        installed = shared_context.install(model)
        self.shared = installed and self._shared_is_equal()
        if installed and not self.shared:
            model.set_attn_implementation("sdpa")
        if not self.shared:
            log.warning(
                "%s does not fit the shared-context engine: its results are the same, row by row and slower", name
            )
        self._check_output()

    @classmethod
    def load(
        cls,
        name: str = "smollm2-135m",
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
    ) -> FrozenLM:
        """Load by short name, local folder or hub id; one that is stored quantised stays so.

        Parameters
        ----------
        name : str
            ``"smollm2-135m"`` is the embedded default and needs no model hub.
        dtype : {"auto", "float32", "bfloat16", "float16"}
            ``"auto"``: bfloat16 where the processor computes in it, else float32.
        device : str
            ``"auto"``: the first GPU if there is one, else the CPU.
        device_map : str or mapping, optional
            Of transformers, in place of ``device``, for an LM larger than one device: ``"auto"``, ``"balanced"``, or
            each module's device (``"disk"`` is one). Virtual tokens and hidden states are where the embeddings are.

        Raises
        ------
        ModelNotFound
            There is no such LM, it is not in safetensors format, lacks weights, or needs a quantiser that is not here.
        ValueError
            An unknown dtype, or both ``device`` and ``device_map``.
        """
        if device_map is not None and device != "auto":
            raise ValueError("give device or device_map, not both")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype not in _DTYPES:
            raise ValueError(f'there is no dtype "{dtype}"; there are: {", ".join(_DTYPES)}')
        places = tuple(device_map.items()) if isinstance(device_map, Mapping) else device_map
        return _load(str(resolve(name)), name, _DTYPES[dtype] or best_dtype(device), device, places)

    # what it is ------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where virtual tokens go in and hidden states come out."""
        return shared_context.home(self.model)

    @property
    def split(self) -> bool:
        """Whether its layers lie on several devices."""
        return len(set(getattr(self.model, "hf_device_map", {}).values())) > 1

    @property
    def quantised(self) -> bool:
        """Whether transformers loaded weights of few bits, by the LM's own configuration."""
        return getattr(self.model, "hf_quantizer", None) is not None

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def embedding(self) -> torch.nn.Embedding:
        return self.model.get_input_embeddings()

    @property
    def hidden_size(self) -> int:
        return self.embedding.embedding_dim

    @cached_property
    def embedding_scale(self) -> float:
        """Standard deviation of the vocabulary's embeddings: the scale at which virtual tokens live."""
        vocabulary = self.embedding.num_embeddings
        # Through `embed`, since some LMs scale their embeddings on the way.
        return self.embed(range(0, vocabulary, max(1, vocabulary // 4096))).float().std().item()

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """What a bundle remembers of its LM, so that another one is refused."""
        h = hashlib.sha256()
        sample = _weight(self.embedding).float()[:: max(1, self.embedding.num_embeddings // 256)]
        h.update(sample.to(torch.bfloat16).float().cpu().numpy().tobytes())
        vocabulary = "\n".join(f"{t}\t{i}" for t, i in sorted(self.tokenizer.get_vocab().items()))
        return {
            "name": self.name,
            "architecture": type(self.model).__name__,
            "hidden_size": self.hidden_size,
            "layers": self.model.config.num_hidden_layers,
            "embedding_sha256": h.hexdigest(),
            "tokenizer_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        }

    @cached_property
    def key_shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, head size) of every layer."""
        return [(k.shape[1], k.shape[3]) for k in self.encode([[0]]).keys]

    def placed(self, prefix: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer in the LM's dtype, where that layer is."""
        where = self.layer_devices
        return [(k.to(d, self.dtype), v.to(d, self.dtype)) for (k, v), d in zip(prefix, where, strict=True)]

    @cached_property
    def layer_devices(self) -> list[torch.device]:
        """Where each layer's keys and values are."""
        return [k.device for k in self.encode([[0]]).keys]

    # text ------------------------------------------------------------------------------------------------------
    def tokens(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; names of special tokens in it stay plain text unless ``special``."""
        if not text:
            return []
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """The begin-of-text token if the tokenizer adds one to a text, else nothing."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return (bos,) if bos is not None and ids[0] == bos else ()

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply: EOS of the model and tokenizer, and the template's end of turn.

        The line end that ends a base model's reply is not among them: it may be part of a larger token.
        """
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        ids = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id}
        if self.template.is_chat:
            ids |= set(self.turn_end_ids)
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that ordinary text must not become."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    @cached_property
    def turn_end_ids(self) -> tuple[int, ...]:
        """The token after a finished reply: the template's special token (else EOS), or a base model's line end."""
        if not self.template.is_chat:
            return tuple(self.tokens("\n")[-1:])
        written = self.tokens(self.template.turn_end(), special=True)
        eos = self.tokenizer.eos_token_id
        return tuple([i for i in written if i in self.special_ids][:1] or [i for i in [eos] if i is not None])

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings (len(ids), H)."""
        return self.embedding(torch.tensor(list(ids), dtype=torch.long, device=self.device))

    # passes ----------------------------------------------------------------------------------------------------
    def encode(self, ids: Sequence[Sequence[int]]) -> Context:
        """Contexts computed once, to be continued many times (see `personae.lm.shared_context`)."""
        self.check_length(max(map(len, ids)))
        return shared_context.encode(self.model, ids, pad=self.tokenizer.pad_token_id or 0)

    def check_length(self, n_tokens: int, new: int = 0, limit: int | None = None) -> None:
        """Raise ``ValueError`` if so many tokens, and new ones that may follow, are more than the LM was made for (or
        than ``limit``)."""
        limits = [n for n in (limit, self.max_tokens) if n is not None]
        if limits and n_tokens + new > min(limits):
            follow = f" and {new} may follow" if new else ""
            remedy = " or lower max_tokens" if new else ", or what was said before it"
            raise ValueError(
                f"the text has {n_tokens} tokens{follow}, but {self.name} reads at most {min(limits)}; "
                f"shorten the text{remedy}"
            )

    @property
    def max_tokens(self) -> int | None:
        """Tokens that the LM was made for; None where its configuration says nothing."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def extend(
        self,
        context: Context,
        x: Tensor,
        offset: Tensor | None = None,
        visible: Tensor | None = None,
        corrections: Corrections | None = None,
    ) -> Tensor:
        """Hidden states (C, N, M, H) of N continuations of each context, by the engine or, if need be, row by row."""
        run = shared_context.continue_shared if self.shared else shared_context.continue_plain
        return run(self.model, context, x, offset, visible, corrections)

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Next-token logits (..., V) in float32, or (..., len(ids)) from those rows of the output matrix only."""
        head = self.model.get_output_embeddings()
        with align_module_device(head):
            weight, bias = head.weight, getattr(head, "bias", None)
        asked_from, hidden = hidden.device, hidden.to(weight.device)
        if ids is not None:
            ids = ids.to(weight.device)
            weight, bias = weight[ids], None if bias is None else bias[ids]
        config = self.model.config
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        if ids is not None:  # few rows, which are compared with each other: bfloat16 is too coarse a grid for that
            hidden, weight = hidden.float(), weight.float()
            bias = None if bias is None else bias.float()
        out = torch.nn.functional.linear(hidden, weight, bias).float()
        out = out if scale == 1 else out * scale  # a copy costs as much as the logits
        cap = getattr(config, "final_logit_softcapping", None)
        return (out if cap is None else cap * torch.tanh(out / cap)).to(asked_from)

    # checks ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _shared_is_equal(self) -> bool:
        """Whether shared and plain passes agree on a tiny input; an architecture may ignore the engine silently."""
        top = self.embedding.num_embeddings - 1
        context = self.encode([[i * 37 % top for i in range(1, 12)], [i * 53 % top for i in range(1, 7)]])
        x = self.embed([i * 71 % top for i in range(1, 13)]).view(2, 2, 3, -1)
        # A tree, whose last two tokens are branches that do not see each other.
        visible = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=x.device).expand(2, 3, 3)
        offset = torch.tensor([0, 1, 1], device=x.device).expand(2, 3)
        try:
            together = shared_context.continue_shared(self.model, context, x, offset, visible).float()
        except Exception as error:  # any architecture may refuse in its own way
            log.info("shared context: %s", error)
            return False
        alone = shared_context.continue_plain(self.model, context, x, offset, visible).float()
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        return bool((together - alone).abs().max() <= tolerance * alone.abs().max())

    @torch.no_grad()
    def _check_output(self) -> None:
        if not self.model.get_output_embeddings().weight.is_floating_point():
            raise ValueError(
                f"the output matrix of {self.name} is quantised, and personae reads single rows of it; quantise the LM "
                "without it (lm_head in modules_to_not_convert)"
            )
        ids = torch.tensor([[1, 2, 3]], device=self.device)
        whole = torch.ones_like(ids)
        own = self.model(input_ids=ids, attention_mask=whole).logits[0, -1].float()
        ours = self.logits(self.model.base_model(input_ids=ids, attention_mask=whole).last_hidden_state[0, -1])
        if (own - ours).abs().max() > 0.02 * own.abs().max() + 1e-4:
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) computes its logits in a way personae does not know; "
                "use an LM whose logits are a linear read-out of the last hidden state"
            )


_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@lru_cache(maxsize=2)  # one LM serves every steerer of a process
def _load(
    folder: str,
    name: str,
    dtype: torch.dtype,
    device: str,
    device_map: str | tuple[tuple[str, int | str], ...] | None,
) -> FrozenLM:
    """Only numbers and text are read: no pickled weights, no code that comes with a model."""
    safe = {"local_files_only": Path(folder).is_dir(), "trust_remote_code": False}
    try:
        with no_bars():
            config = AutoConfig.from_pretrained(folder, **safe)
            if device_map is None and getattr(config, "quantization_config", None) is not None:
                device_map = (("", device),)  # where it is quantised is where it is loaded to
            model, about = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map=dict(device_map) if isinstance(device_map, tuple) else device_map,
                use_safetensors=True,
                output_loading_info=True,
                **safe,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelNotFound(f"{name} cannot be loaded as a causal LM in safetensors format: {reason}") from error
    if about["missing_keys"]:  # they would be random numbers
        raise ModelNotFound(f"{name} lacks weights of its architecture: {', '.join(sorted(about['missing_keys'])[:3])}")
    return FrozenLM(model.to(device) if device_map is None else model, tokenizer, name)


def _weight(module: torch.nn.Module) -> Tensor:
    """A module's weight, also where it lies on the disk between passes."""
    with align_module_device(module):
        return module.get_parameter("weight").detach()


def _bring_home(base: PreTrainedModel, args: Any, out: Any) -> Any:
    """Hidden states of an LM that is split over devices come out where its embeddings are."""
    out.last_hidden_state = out.last_hidden_state.to(shared_context.home(base))
    return out


def best_dtype(device: str) -> torch.dtype:
    """bfloat16 where the processor has instructions for it, else float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if device == "cpu" and supported() else torch.float32
