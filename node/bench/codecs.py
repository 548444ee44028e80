"""How fast each codec is on one core, how many bytes it takes and what it loses.

    scripts/bench codecs [--json FILE] [--out FOLDER] [--runs N] [--numbers N ...]

Speeds are GB of float32 a second, one thread, beside a plain cast to bf16 and back; zstd is run
over the finished payload: its speed in the same unit, and the bytes that it saves.  The vector is
made up: normal numbers, whose spread differs from chunk to chunk as it does between layers.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import zstandard
from torch import Generator, Tensor

from node.bench import common
from protocol.fragments import num_parameters
from protocol.model import GptConfig
from protocol.payload import CHUNK, CODECS, Label
from trainers.compress import decode, encode

LARGE = 1 << 24
"""Numbers: a model of 16 M parameters, 64 MiB in float32, more than most caches."""

RUNS = 7
ZSTD_LEVELS = (1, 3)
"""The fastest ordinary level, and zstd's default."""

CAST = "bf16 cast"

HEADINGS = {
    "numbers": "numbers",
    "codec": "codec",
    "encode_gb_per_s": "encode\nGB/s",
    "decode_gb_per_s": "decode\nGB/s",
    "bytes_per_number": "bytes a\nnumber",
    "relative_mse": "relative\nerror^2",
    **{f"zstd{level}_gb_per_s": f"zstd {level}\nGB/s" for level in ZSTD_LEVELS},
    **{f"zstd{level}_saves_percent": f"zstd {level}\nsaves %" for level in ZSTD_LEVELS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the table: what is timed, and what came out of it."""

    name: str
    encode: Callable[[], object]
    decode: Callable[[], Tensor]
    payload: bytearray | memoryview
    """What travels."""


def main() -> int:
    parser = common.parser("codecs", "Speed, size and loss of each codec on one core.")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of which the median is taken")
    parser.add_argument(
        "--numbers",
        type=int,
        nargs="+",
        default=[num_parameters(GptConfig()), LARGE],
        help="lengths of the vector: the default model's, and 16 Mi",
    )
    args = parser.parse_args()
    if args.runs < 1 or min(args.numbers) < 1:
        parser.error("--runs and --numbers are at least 1")
    torch.set_num_threads(1)
    rows = [row for count in args.numbers for row in measured(count, args.runs)]
    note = f"GB/s of float32 on one thread, medians of {args.runs} interleaved runs"
    settings: common.Row = {"runs": args.runs, "threads": 1}
    common.report("codecs", rows, HEADINGS, note)
    common.write_json(args.json, rows, settings)
    if args.out:
        lines = [f"{note}.", "", *common.markdown(rows, HEADINGS)]
        common.write_page(args.out, "codecs", "Codecs", lines)
        common.write_json(args.out / "codecs.json", rows, settings)
    return 0


def measured(count: int, runs: int) -> list[common.Row]:
    """A row for each codec, on a vector of `count` numbers."""
    vector_P = made_up(count)
    found = entries(vector_P)
    cases: dict[str, Callable[[], object]] = {}
    for entry in found:
        cases[f"encode {entry.name}"] = entry.encode
        cases[f"decode {entry.name}"] = entry.decode
        for level in ZSTD_LEVELS:
            squeeze = zstandard.ZstdCompressor(level=level).compress
            cases[f"zstd{level} {entry.name}"] = functools.partial(squeeze, entry.payload)
    seconds = common.median_seconds(cases, runs)
    speed = {name: 4e-9 * count / taken for name, taken in seconds.items()}
    return [row(entry, vector_P, speed) for entry in found]


def row(entry: Entry, vector_P: Tensor, speed: dict[str, float]) -> common.Row:
    size = len(entry.payload)
    figures: dict[str, str | int | float | None] = {
        "numbers": len(vector_P),
        "codec": entry.name,
        "encode_gb_per_s": speed[f"encode {entry.name}"],
        "decode_gb_per_s": speed[f"decode {entry.name}"],
        "payload_bytes": size,
        "bytes_per_number": size / len(vector_P),
        "relative_mse": lost(vector_P, entry.decode()),
    }
    for level in ZSTD_LEVELS:
        squeezed = len(zstandard.ZstdCompressor(level=level).compress(entry.payload))
        figures[f"zstd{level}_gb_per_s"] = speed[f"zstd{level} {entry.name}"]
        figures[f"zstd{level}_saves_percent"] = 100 * (1 - squeezed / size)
    return figures


def entries(vector_P: Tensor) -> list[Entry]:
    """The plain cast, and every codec; int8 both as weights and as an outer gradient."""
    half_P = vector_P.bfloat16()
    cast = Entry(
        name=CAST,
        encode=vector_P.bfloat16,
        decode=half_P.float,
        payload=half_P.view(torch.int16).numpy().data.cast("B"),
    )
    rng = Generator().manual_seed(1)
    found = [cast]
    for codec in CODECS:
        for content in ("vector", "gradient") if codec == "int8" else ("gradient",):
            label = Label(codec=codec, content=content, fragment=0, round=0, count=len(vector_P))
            out = bytearray(label.payload_bytes)
            encode(vector_P, label, rng, out)
            found.append(
                Entry(
                    name=f"int8 {content}" if codec == "int8" else codec,
                    encode=functools.partial(encode, vector_P, label, rng, out),
                    decode=functools.partial(decode, out, label),
                    payload=out,
                )
            )
    return found


def made_up(count: int) -> Tensor:
    """Normal numbers, float32 (P,); the logarithm of each chunk's spread is normal as well."""
    rng = Generator().manual_seed(0)
    chunks = -(-count // CHUNK)
    spread_C1 = torch.randn(chunks, 1, generator=rng).exp()
    return (torch.randn(chunks, CHUNK, generator=rng) * spread_C1 * 0.01).view(-1)[:count]


def lost(vector_P: Tensor, found_P: Tensor) -> float:
    """The squared error over the squared norm."""
    error = (found_P - vector_P).double().square().sum() / vector_P.double().square().sum()
    return error.item()


if __name__ == "__main__":
    sys.exit(main())
