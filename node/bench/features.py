"""The movie sentences as MiniLM sees them, computed once and kept in the cache.

What is kept: of each sentence the pooled features, which a head is trained on, and the states
that go into the last layer, which is trained on those; the layers below stay frozen.

Shape suffixes: N sentences, M tokens of all sentences one after the other, C width, B batch,
T tokens of the longest in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from node.bench.minilm import (
    LAYERS,
    MINILM,
    WIDTH,
    Encoder,
    embedded,
    pooled,
    pretrained,
    through_layer,
)
from node.bench.sentences import VADER, movie_sentences

NUM_SENTENCES = 6_000
"""Of 10,072: their states take 120 MB in the cache, and a minute of one core to compute."""
AT_ONCE = 64
"""Sentences in one pass.  Sorted by length, so that little is padding."""


@dataclass(frozen=True, slots=True)
class Features:
    """Sentences in a random order that is always the same."""

    labels_N: Tensor
    """int64, 1 is positive."""
    pooled_NC: Tensor
    """float32: the mean of the last layer's states."""
    states_MC: Tensor
    """float16: what goes into the last layer, sentence after sentence."""
    starts_N: Tensor
    """Where each sentence's states begin; one more for the end."""

    def states(self, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        """The states of some sentences, (B, T, C) with zeros behind, and the mask (B, T)."""
        starts_B = self.starts_N[chosen_B]
        lengths_B = self.starts_N[chosen_B + 1] - starts_B
        places_T = torch.arange(int(lengths_B.max()))
        mask_BT = places_T < lengths_B[:, None]
        rows_BT = (starts_B[:, None] + places_T) * mask_BT
        return self.states_MC[rows_BT].float() * mask_BT[..., None], mask_BT


def movie_features(cache: Path, say: Callable[[str], None]) -> Features:
    """From the cache, or computed into it.

    Raises:
        ConfigError: sentences or weights cannot be had.
    """
    kept = cache / f"movie-features-{VADER.sha256[:8]}-{MINILM.sha256[:8]}-{NUM_SENTENCES}"
    if not kept.is_file():
        sentences = movie_sentences(cache)
        encoder = pretrained(cache)
        say(f"computing the features of {NUM_SENTENCES} sentences: about a minute")
        tensors = _computed(encoder, sentences.texts[:NUM_SENTENCES])
        tensors["labels"] = torch.tensor(sentences.labels[:NUM_SENTENCES]).long()
        partial = kept.with_suffix(".partial")
        save_file(tensors, partial)
        partial.rename(kept)
    kept_tensors = load_file(kept)
    return Features(*(kept_tensors[name] for name in ("labels", "pooled", "states", "starts")))


@torch.no_grad()
def _computed(encoder: Encoder, texts: tuple[str, ...]) -> dict[str, Tensor]:
    tokens = [encoding.ids for encoding in encoder.tokenizer.encode_batch(list(texts))]
    starts_N = torch.tensor([0, *(len(sentence) for sentence in tokens)]).cumsum(0)
    states_MC = torch.empty(int(starts_N[-1]), WIDTH, dtype=torch.float16)
    pooled_NC = torch.empty(len(texts), WIDTH)
    layers = [encoder.layer(index) for index in range(LAYERS)]
    by_length = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    for first in range(0, len(texts), AT_ONCE):
        chosen = by_length[first : first + AT_ONCE]
        x_BTC, mask_BT = embedded(encoder, [tokens[index] for index in chosen])
        for layer in layers[:-1]:
            x_BTC = through_layer(x_BTC, mask_BT, layer)
        for row, index in enumerate(chosen):
            length = len(tokens[index])
            states_MC[starts_N[index] : starts_N[index] + length] = x_BTC[row, :length]
        pooled_NC[chosen] = pooled(through_layer(x_BTC, mask_BT, layers[-1]), mask_BT)
    return {"pooled": pooled_NC, "states": states_MC, "starts": starts_N}
