"""The run's tokenizer: byte-level BPE, trained once by the creator, carried as a blob.

Lossless for every text, and the same text and vocabulary give the same bytes of JSON.  No
torch here: the node of a run's creator trains it.
Source: https://huggingface.co/docs/tokenizers
"""

from __future__ import annotations

from array import array

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from protocol.errors import Malformed

PIECE_CHARS = 1 << 16
"""Text is encoded in pieces of this: one long string is slower by half, and memory is
bounded.  Tokens do not cross the border between two."""
PIECES_AT_ONCE = 64
"""Are encoded side by side: what the library says of them beside the tokens is some 60 times the
text."""


def train_tokenizer(text: str, vocab: int) -> bytes:
    """JSON of a tokenizer with at most `vocab` tokens, 256 of which are the bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer.to_str().encode()


def load_tokenizer(data: bytes, vocab: int) -> Tokenizer:
    """The tokenizer in this JSON.

    Raises:
        Malformed: no tokenizer, or more tokens than the model of the run has.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the binding raises nothing narrower
        raise Malformed(f"not a tokenizer: {error}") from error
    if tokenizer.get_vocab_size() > vocab:
        raise Malformed(f"{tokenizer.get_vocab_size()} tokens, the model has {vocab}")
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> array[int]:
    """The tokens of `text`, 4 bytes each: a list would take some 40 bytes a token."""
    ids = array("i")
    starts = range(0, len(text), PIECE_CHARS)
    for at in range(0, len(starts), PIECES_AT_ONCE):
        pieces = [text[i : i + PIECE_CHARS] for i in starts[at : at + PIECES_AT_ONCE]]
        for item in tokenizer.encode_batch_fast(pieces):
            ids.extend(item.ids)
    return ids


def token_bytes(tokenizer: Tokenizer) -> list[int]:
    """How many bytes of text each token stands for, by token.

    In a byte-level vocabulary every character of a token's spelling is one byte.
    """
    return [len(tokenizer.id_to_token(id) or "") for id in range(tokenizer.get_vocab_size())]
