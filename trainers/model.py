"""A small GPT whose parameters are views of one flat vector.

Pre-norm transformer in the manner of nanoGPT: learned positions, biases, GELU, and the head
tied to the token embedding.  The default configuration has 940,800 parameters, which
`protocol.fragments.num_parameters` computes without torch.

All that peers exchange is the flat vector, float32 (P,): matrices first, then biases and
norms, each in the order of `named_parameters`, so that weight decay covers one range.
Making a model on a vector copies nothing: training writes into the vector, and evaluating
another vector (slow weights, a mean) costs no second set of weights.

Shape suffixes: B batch, T tokens of a sequence, C width, V vocabulary, P parameters.
Source: https://github.com/karpathy/nanoGPT (model.py).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from protocol.fragments import num_parameters
from protocol.model import GptConfig

INIT_STD = 0.02
"""GPT-2's; projections back into the residual stream get it over sqrt(2 layers)."""


class Block(nn.Module):
    """Attention and a perceptron, each added to the residual stream."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.perceptron_out = nn.Linear(4 * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.attention(self.norm1(x_BTC))
        y_BTC: Tensor = self.perceptron_out(F.gelu(self.up(self.norm2(x_BTC))))
        return x_BTC + y_BTC

    def attention(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        heads = self.qkv(x_BTC).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        if x_BTC.device.type == "cpu":
            # TRAP: in bf16 the CPU's flash attention takes seven times as long going back.
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.attention_out(y.transpose(1, 2).reshape(B, T, C))
        return out


class Gpt(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        T = tokens_BT.shape[1]
        x_BTC = self.tokens(tokens_BT) + self.positions.weight[:T]
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return F.linear(self.norm(x_BTC), self.tokens.weight)


def model_on(config: GptConfig, weights_P: Tensor) -> Gpt:
    """A model whose parameters are views of `weights_P`: neither copies the other."""
    with torch.device("meta"):
        model = Gpt(config)
    model.load_state_dict(views(config, weights_P), assign=True)
    return model


def views(config: GptConfig, vector_P: Tensor) -> dict[str, Tensor]:
    """The parts of a flat vector, by parameter name, each in its parameter's shape."""
    parts, start = {}, 0
    for name, shape in _layout(config):
        size = math.prod(shape)
        parts[name] = vector_P[start : start + size].view(shape)
        start += size
    if start != vector_P.numel():
        raise ValueError(f"{vector_P.numel()} numbers for a model of {start} parameters")
    return parts


def num_decayed(config: GptConfig) -> int:
    """How many of the first numbers belong to matrices, which weight decay applies to."""
    return sum(math.prod(shape) for _, shape in _layout(config) if len(shape) > 1)


def initial_weights(config: GptConfig, rng: Generator) -> Tensor:
    """Fresh weights, float32 (P,), on the CPU: equal generators give equal bits."""
    weights_P = torch.zeros(num_parameters(config))
    for name, part in views(config, weights_P).items():
        if part.dim() > 1:
            residual = name.endswith("_out.weight")
            std = INIT_STD / math.sqrt(2 * config.layers) if residual else INIT_STD
            part.normal_(0.0, std, generator=rng)
        elif "norm" in name and name.endswith("weight"):
            part.fill_(1.0)
    return weights_P


def _layout(config: GptConfig) -> list[tuple[str, torch.Size]]:
    with torch.device("meta"):
        parameters = [(name, p.shape) for name, p in Gpt(config).named_parameters()]
    return sorted(parameters, key=lambda item: len(item[1]) < 2)  # stable: matrices first
