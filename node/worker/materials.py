"""What a worker works with: the run, its texts as tokens, the device; and weights to begin from."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from node.worker import wire
from node.worker.files import read_slow
from node.worker.shared import check_shared
from protocol import codec
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.ids import Round, RunId, seed_of
from protocol.messages import Checkpoint
from protocol.spec import MAX_SPEC_BYTES, RunSpec
from trainers import tokenizer
from trainers.data import Validation
from trainers.model import initial_weights
from trainers.state import Slow


@dataclass(frozen=True, slots=True)
class Materials:
    """What `Setup` named, read."""

    run: RunId
    spec: RunSpec
    tokens_N: Tensor
    validation: Validation
    device: torch.device

    @classmethod
    def read(cls, setup: wire.Setup) -> Materials:
        """Raises ValueError, OSError: a file is missing, broken, or too short to train on."""
        spec = codec.decode(RunSpec, setup.spec_body, max_bytes=MAX_SPEC_BYTES)
        bpe = tokenizer.load_tokenizer(Path(setup.tokenizer).read_bytes(), spec.model.vocab)
        context = spec.model.context
        ids = array("i")
        for path in setup.corpus:
            ids += tokenizer.encode(bpe, _text(path))
        if len(ids) <= context:
            raise ValueError(f"{len(ids)} tokens of training text, expected more than {context}")
        return cls(
            spec.run,
            spec,
            torch.tensor(ids, dtype=torch.int32),
            read_validation(spec, setup.tokenizer, setup.validation),
            _device(setup.device),
        )


def _device(name: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("device is cuda, but torch finds no GPU here; set device to auto or cpu")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def read_validation(spec: RunSpec, tokenizer_path: str, path: str) -> Validation:
    """The run's yardstick.  Raises ValueError, OSError: it cannot be read."""
    bpe = tokenizer.load_tokenizer(Path(tokenizer_path).read_bytes(), spec.model.vocab)
    tokens_N = torch.tensor(tokenizer.encode(bpe, _text(path)))
    return Validation(tokens_N, tokenizer.token_bytes(bpe), spec.model.context)


def initial_slow(spec: RunSpec) -> Slow:
    """Round 0 of a run: equal on all peers."""
    rng = Generator().manual_seed(seed_of(spec.seed, "init"))
    phi_P = initial_weights(spec.model, rng)
    return Slow(Round(0), phi_P, torch.zeros_like(phi_P))


def from_checkpoint(checkpoint: Checkpoint, fds: Sequence[int], materials: Materials) -> Slow:
    """The slow weights that came with a command.

    Raises:
        Malformed: none came, or others than the checkpoint says.
    """
    count = num_parameters(materials.spec.model)
    slow = read_slow(checkpoint_file(fds), materials.run, count)
    if slow.round != checkpoint.round or slow.digest() != checkpoint.weights:
        raise Malformed("a checkpoint of another round or with other weights than it says")
    check_shared(slow, materials.spec)
    return slow


def checkpoint_file(fds: Sequence[int]) -> Path:
    """The file that came with a command.  Raises Malformed: none came."""
    if len(fds) != 1:
        raise Malformed("no checkpoint came with the command")
    return Path(f"/proc/self/fd/{fds[0]}")


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
