"""A Hugging Face folder of a run's model: `from_pretrained` loads it without code of ours.

The model is GPT-2 with exact GELU.  Parameters map one to one; GPT-2 keeps the matrices inside
its blocks as (in, out), torch's `Linear` as (out, in), so these are transposed.  The head is tied
and not written.  The tokenizer is the run's own JSON; it has no special tokens, and so the model
has none.
Source: https://huggingface.co/docs/transformers/model_doc/gpt2
"""

from __future__ import annotations

import json

from safetensors.torch import save as serialized
from torch import Tensor

from node.trained import Trained
from protocol.fragments import num_parameters
from protocol.model import GptConfig
from trainers.model import views

OUTSIDE = {
    "tokens.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
}
IN_BLOCK = {
    "norm1": "ln_1",
    "qkv": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "perceptron_out": "mlp.c_proj",
}
NORM_EPSILON = 1e-5
"""torch's default, which the model has."""
WITHOUT_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}
"""GPT-2's own would lie outside the vocabulary."""

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, shoal]
---

# {title}

Trained by strangers together, with shoal: no server, no coordinator.

| | |
|---|---|
| run | `{run}` |
| round | {round} of {rounds} |
| trainer | {trainer} |
| validation loss | {loss} |
| parameters | {parameters:,} |
| context | {context} tokens |

    from transformers import pipeline
    generate = pipeline("text-generation", ".")
    print(generate("Once", max_new_tokens=40, do_sample=True)[0]["generated_text"])

`run` is the BLAKE2b-256 digest of the run's spec. The model reads {context} tokens at most, prompt
and answer together.
"""


def folder(trained: Trained, loss: float | None) -> dict[str, bytes]:
    """The files by name; equal snapshots give equal bytes.

    Args:
        loss: on the run's validation text, nats per byte; None: not measured.
    """
    model = trained.spec.model
    return {
        "README.md": _card(trained, loss).encode(),
        "config.json": _json(_config(trained)),
        "generation_config.json": _json(WITHOUT_SPECIAL_TOKENS),
        "model.safetensors": serialized(_tensors(model, trained.weights_P), {"format": "pt"}),
        "tokenizer.json": trained.tokenizer,
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": model.context,
                "clean_up_tokenization_spaces": False,
            }
        ),
    }


def _tensors(config: GptConfig, weights_P: Tensor) -> dict[str, Tensor]:
    return dict(_renamed(name, part) for name, part in views(config, weights_P).items())


def _renamed(name: str, part: Tensor) -> tuple[str, Tensor]:
    """A parameter as GPT-2 has it."""
    if name in OUTSIDE:
        return OUTSIDE[name], part
    _, layer, module, kind = name.split(".")
    if part.dim() > 1:
        part = part.T.contiguous()
    return f"transformer.h.{layer}.{IN_BLOCK[module]}.{kind}", part


def _config(trained: Trained) -> dict[str, object]:
    model = trained.spec.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu",
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_embd": model.width,
        "n_positions": model.context,
        "vocab_size": model.vocab,
        "layer_norm_epsilon": NORM_EPSILON,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        **WITHOUT_SPECIAL_TOKENS,
        "shoal": {"run": trained.spec.run.hex(), "round": trained.round},
    }


def _card(trained: Trained, loss: float | None) -> str:
    spec = trained.spec
    # The name is the creator's: it must not end the heading, nor begin something else.
    title = "".join(char if char.isalnum() or char in " .-_" else " " for char in spec.name)
    return CARD.format(
        title=title.strip() or "A shoal run",
        run=spec.run.hex(),
        round=trained.round,
        rounds=spec.rounds,
        trainer=spec.trainer.KIND,
        loss="not measured" if loss is None else f"{loss:.4f} nats per byte",
        parameters=num_parameters(spec.model),
        context=spec.model.context,
    )


def _json(value: object) -> bytes:
    return f"{json.dumps(value, indent=2)}\n".encode()
