"""`shoal sample`: goes on with a prompt, as the newest snapshot of this node would.

Text comes as soon as its characters are whole: a token of byte-level BPE may be half of one.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import torch
from tokenizers import Tokenizer
from torch import Generator

from node.config import NodeConfig
from node.keys import DataDir
from node.trained import Trained, read_trained
from protocol import check
from protocol.errors import ConfigError, Malformed
from trainers.model import model_on
from trainers.sampling import SamplingConfig, continuation
from trainers.tokenizer import encode, load_tokenizer

MAX_PROMPT_BYTES = 1024 * 1024
"""Only its end is read, as much as the context has; more is another kind of file."""
MAX_TOKENS = 1_000_000
START = "\n"
"""What a model is given to begin from if the prompt is empty: it knows no token for that."""
STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    config: NodeConfig
    prompt: str
    tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    """None: another text each time."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text that comes piece by piece."""

    pieces: Iterator[str]
    """The prompt, then what comes after it."""
    note: str
    """Newer snapshots that were not usable, and why; empty: there are none."""


def sample_model(options: Options) -> Sampled:
    """Go on with the prompt.

    Raises:
        ConfigError: an option is out of range, or there is no usable snapshot.
    """
    sampling = _sampling(options)
    torch.set_num_threads(options.config.threads)  # the node may be training meanwhile
    trained = read_trained(DataDir(options.config.data_dir))
    seed = secrets.randbits(63) if options.seed is None else options.seed
    pieces = _pieces(trained, options, sampling, Generator().manual_seed(seed))
    return Sampled(pieces, trained.note)


def read_prompt(argument: str, stdin: BinaryIO) -> str:
    """The prompt itself, or what standard input holds if it is "-".

    Raises:
        ConfigError: too long, or not UTF-8.
    """
    raw = stdin.read(MAX_PROMPT_BYTES + 1) if argument == STDIN else None
    try:
        data = raw if raw is not None else argument.encode()
        text = data.decode()
    except UnicodeError as error:
        raise ConfigError(
            f"prompt: not UTF-8 text ({error}), expected UTF-8; convert it first"
        ) from None
    if len(data) > MAX_PROMPT_BYTES:
        raise ConfigError(
            f"prompt: over {MAX_PROMPT_BYTES} bytes, expected fewer; give its end, for the model "
            "reads no more than its context"
        )
    return text


def text_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as it becomes known; bytes that are no character become U+FFFD."""
    byte_of = _byte_of_char()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        spelling = tokenizer.id_to_token(token) or ""
        data = bytes(byte_of[char] for char in spelling if char in byte_of)
        if piece := decoder.decode(data):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _sampling(options: Options) -> SamplingConfig:
    try:
        check.integer("tokens", options.tokens, 1, MAX_TOKENS)
        if options.seed is not None:
            check.integer("seed", options.seed, 0, (1 << 63) - 1)
        return SamplingConfig(
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        )
    except ValueError as error:
        raise ConfigError(f"command line: {error}") from None


def _pieces(
    trained: Trained, options: Options, sampling: SamplingConfig, rng: Generator
) -> Iterator[str]:
    config = trained.spec.model
    try:
        tokenizer = load_tokenizer(trained.tokenizer, config.vocab)
    except Malformed as error:
        raise ConfigError(f"tokenizer of the run: {error}, expected the run's own") from error
    prompt = list(encode(tokenizer, options.prompt or START))
    if not prompt:
        raise ConfigError("tokenizer of the run: it makes no token of the prompt; try another one")
    model = model_on(config, trained.weights_P)
    vocab = tokenizer.get_vocab_size()
    tokens = continuation(model, config, prompt, sampling, rng, vocab=vocab)
    return _joined(options.prompt, text_of(tokenizer, islice(tokens, options.tokens)))


def _joined(prompt: str, pieces: Iterator[str]) -> Iterator[str]:
    if prompt:
        yield prompt
    yield from pieces


def _byte_of_char() -> dict[str, int]:
    """The byte that each character of a token's spelling stands for.

    Visible bytes of Latin-1 are themselves, the others get characters from 256 on.
    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py (bytes_to_unicode)
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
