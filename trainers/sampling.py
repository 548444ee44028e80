"""Text from a model, token by token: what it has read is kept, so that one more costs one token.

Positions are learned and belong to the window, so a window that is full cannot move on by one:
it begins anew with the newer half of it, which is read again.  So a token costs the same on
average however long the text gets, and the model always sees between a half and the whole of its
context.

Shape suffixes: T tokens read at once, H heads, N tokens read so far, C width, V vocabulary.
Source of the rules: https://arxiv.org/abs/1904.09751 (top-p), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from protocol import check
from protocol.model import GptConfig
from trainers.model import Block, Gpt

MAX_TOP_K = 1 << 20
"""The largest vocabulary of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn.  A field out of range raises ValueError."""

    temperature: float = 0.8
    """Logits are divided by it; 0: always the most probable token."""
    top_k: int = 0
    """Only the so many most probable ones; 0: all."""
    top_p: float = 1.0
    """Only the fewest most probable ones that have this probability together."""

    def __post_init__(self) -> None:
        check.number("temperature", self.temperature, 0.0, 100.0)
        check.integer("top_k", self.top_k, 0, MAX_TOP_K)
        check.number("top_p", self.top_p, 0.0, 1.0)


class Reader:
    """A model and what it has read: keys and values of every layer."""

    def __init__(self, model: Gpt, config: GptConfig) -> None:
        shape = (config.layers, config.heads, config.context, config.width // config.heads)
        weight = model.tokens.weight
        self._model = model
        self._keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self._values = torch.empty_like(self._keys)
        self._context = config.context
        self.read = 0
        """Tokens so far."""

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Read on; the logits of what comes next, (V,).

        Raises:
            ValueError: no token, more than the context has room for, or several at once though
                some were read before.
        """
        start, T = self.read, len(tokens)
        if not 1 <= T <= (1 if start else T) or start + T > self._context:
            raise ValueError(
                f"{T} tokens after {start}, expected one, or the first ones, and at most "
                f"{self._context} in all"
            )
        model = self._model
        x_TC = model.tokens(torch.tensor(tokens)) + model.positions.weight[start : start + T]
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x_TC = x_TC + self._attention(layer, block, block.norm1(x_TC))
            x_TC = x_TC + block.perceptron_out(F.gelu(block.up(block.norm2(x_TC))))
        self.read += T
        return F.linear(model.norm(x_TC[-1]), model.tokens.weight)

    def _attention(self, layer: int, block: Block, x_TC: Tensor) -> Tensor:
        """As `Block.attention` has it, over all that was read."""
        start, (T, C) = self.read, x_TC.shape
        heads = block.qkv(x_TC).view(T, 3, block.heads, C // block.heads)
        q_HTD, k_HTD, v_HTD = heads.permute(1, 2, 0, 3)
        keys_HND, values_HND = (
            self._keys[layer, :, : start + T],
            self._values[layer, :, : start + T],
        )
        keys_HND[:, start:], values_HND[:, start:] = k_HTD, v_HTD
        y_HTD = F.scaled_dot_product_attention(
            q_HTD[None], keys_HND[None], values_HND[None], is_causal=start == 0
        )[0]
        out: Tensor = block.attention_out(y_HTD.transpose(0, 1).reshape(T, C))
        return out


def continuation(
    model: Gpt,
    config: GptConfig,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    rng: Generator,
    *,
    vocab: int,
) -> Iterator[int]:
    """Tokens after `prompt`, without end.

    Args:
        prompt: a token or more; of a longer one than the context the end is read.
        vocab: tokens of the tokenizer; the model may have room for more, which mean nothing.
    """
    window, new = list(prompt[-config.context :]), list(prompt[-config.context :])
    reader = Reader(model, config)
    while True:
        if reader.read + len(new) > config.context:
            window = new = window[-(config.context // 2) :]
            reader = Reader(model, config)
        token = pick(reader.logits(new)[:vocab], sampling, rng)
        yield token
        new = [token]
        window = [*window, token]


def pick(logits_V: Tensor, sampling: SamplingConfig, rng: Generator) -> int:
    """The next token: equal generators draw equal ones."""
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    scaled_V = (logits_V - logits_V.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled_V):
        least = scaled_V.topk(sampling.top_k).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < least, -torch.inf)
    probabilities_V = scaled_V.softmax(dim=0)
    if sampling.top_p < 1.0:
        probabilities_V = _nucleus(probabilities_V, sampling.top_p)
    return int(torch.multinomial(probabilities_V, 1, generator=rng))


def _nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """The most probable ones up to and with that which reaches `top_p`; zero elsewhere."""
    falling_V, order_V = probabilities_V.sort(descending=True, stable=True)
    before_V = falling_V.cumsum(dim=0) - falling_V
    before_V[0] = -1.0  # one is left, whatever top_p is
    kept_V = falling_V.masked_fill(before_V >= top_p, 0.0)
    return torch.zeros_like(probabilities_V).scatter(0, order_V, kept_V)
