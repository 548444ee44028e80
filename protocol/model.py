"""The model and the inner optimizer of a run, as its spec has them."""

from __future__ import annotations

from dataclasses import dataclass

from protocol import check


@dataclass(frozen=True, slots=True, kw_only=True)
class GptConfig:
    """A small decoder-only transformer.  The default has 0.94 M parameters."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 128
    """Tokens a prediction can look back on."""
    vocab: int = 1024
    """Tokens of the run's BPE tokenizer."""

    def __post_init__(self) -> None:
        check.integer("model.layers", self.layers, 1, 256)
        check.integer("model.heads", self.heads, 1, 256)
        check.integer("model.width", self.width, 8, 16384)
        check.integer("model.context", self.context, 8, 65536)
        check.integer("model.vocab", self.vocab, 257, 1 << 20)
        if self.width % self.heads:
            raise ValueError(
                f"model.width is {self.width}, expected a multiple of {self.heads} heads"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerConfig:
    """The inner optimizer: AdamW, warm-up and cosine by round, clipping."""

    batch: int = 16
    """Sequences of `context` tokens in one inner step."""
    lr: float = 2e-3
    min_lr_ratio: float = 0.1
    """The cosine ends at lr times this.  NoLoCo 3.2: lr / 10."""
    warmup_rounds: float = 1.0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient of the whole model."""
    precision: str = "fp32"
    """fp32, or bf16 autocast with fp32 weights."""
    accumulate: int = 1
    """Parts in which a batch is computed, one after the other, where memory is short."""

    def __post_init__(self) -> None:
        check.integer("inner.batch", self.batch, 1, 65536)
        check.number("inner.lr", self.lr, 1e-8, 10.0)
        check.number("inner.min_lr_ratio", self.min_lr_ratio, 0.0, 1.0)
        check.number("inner.warmup_rounds", self.warmup_rounds, 0.0, 1e6)
        check.number("inner.weight_decay", self.weight_decay, 0.0, 10.0)
        check.number("inner.beta1", self.beta1, 0.0, 0.99999)
        check.number("inner.beta2", self.beta2, 0.0, 0.99999)
        check.number("inner.clip", self.clip, 1e-6, 1e6)
        check.one_of("inner.precision", self.precision, ("fp32", "bf16"))
        check.integer("inner.accumulate", self.accumulate, 1, 65536)
        if self.batch % self.accumulate:
            raise ValueError(
                f"inner.accumulate is {self.accumulate}, expected a divisor of inner.batch "
                f"{self.batch}"
            )
