"""scripts/bench moments: what a member's inner moments are worth to a joiner, in full or in short.

A member trains; then joiners begin with its weights, on text that only they draw, each with
another start of AdamW's moments:

    none      zeros, as a joiner has them
    compact   the second moments as row and column means, the first as zeros: 1 in 50 of the numbers
    full      the member's moments, twice the weights in bytes

All take the same batches at the same learning rate.

Source of the compact form: Adafactor, https://arxiv.org/abs/1804.04235, section 3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from node import corpus
from node.bench import common
from protocol.ids import Digest, PeerId, digest_of, peer_id
from protocol.model import GptConfig, InnerConfig
from trainers import tokenizer
from trainers.compact import compact, compact_count, expanded
from trainers.data import Validation, batch
from trainers.inner import Inner, Moments
from trainers.model import initial_weights, model_on

MODEL = GptConfig()
INNER = InnerConfig()
SEED = 7
WARMUP_STEPS = 40
LOOKS = (5, 10, 20, 50)
"""Steps after joining at which the validation loss is measured."""
HEADINGS = {
    "start": "moments",
    "seeds": "seeds",
    **{f"after_{steps}": f"after {steps}\nsteps" for steps in LOOKS},
    "moment_mb": "MB to\nfetch more",
}


def main() -> int:
    parser = common.parser("moments", (__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of the member before (300)")
    parser.add_argument("--seeds", type=int, default=3, help="joiners of each kind (3)")
    args = parser.parse_args()
    if args.steps < 1 or args.seeds < 1:
        parser.error("--steps and --seeds are at least 1")
    torch.set_num_threads(1)
    before, rows = measured(args)
    note = (
        f"Thousandths of a nat per byte against the {before:.4f} that the member had after "
        f"{args.steps} steps; medians of the seeds."
    )
    common.report("moments", rows, HEADINGS, note)
    settings: common.Row = {"steps": args.steps, "seeds": args.seeds, "before": before}
    common.write_json(args.json, rows, settings)
    if args.out:
        lines = [note, "", *common.markdown(rows, HEADINGS)]
        common.write_page(args.out, "moments", "Inner moments for a joiner", lines)
        common.write_json(args.out / "moments.json", rows, settings)
    return 0


def measured(args: argparse.Namespace) -> tuple[float, list[common.Row]]:
    """The loss at the moment of joining, and a row for each start."""
    text = corpus.load("shakespeare", Path.home() / ".cache" / "shoal")
    bpe = tokenizer.load_tokenizer(
        tokenizer.train_tokenizer(text.train.decode(), MODEL.vocab), MODEL.vocab
    )
    tokens_N = torch.tensor(tokenizer.encode(bpe, text.train.decode()), dtype=torch.int32)
    held_out = torch.tensor(tokenizer.encode(bpe, text.validation.decode()))
    yardstick = Validation(held_out, tokenizer.token_bytes(bpe), MODEL.context)
    member = Inner(MODEL, INNER, initial_weights(MODEL, Generator().manual_seed(SEED)))
    train(member, tokens_N, "member", 0, args.steps)
    theta_P, full = member.theta_P.clone(), member.moments()
    zeros_P = torch.zeros_like(theta_P)
    starts = {
        "none": Moments(zeros_P, zeros_P, 0),
        "compact": Moments(
            zeros_P, expanded(MODEL, compact(MODEL, full.second_P), full.second_P), full.steps
        ),
        "full": full,
    }
    found: dict[str, list[dict[int, float]]] = {name: [] for name in starts}
    for seed in range(args.seeds):
        for name, moments in starts.items():
            joiner = Inner(MODEL, INNER, theta_P.clone())
            joiner.restore(moments)
            losses, made = {}, 0
            for look in LOOKS:
                train(joiner, tokens_N, f"joiner {seed}", args.steps + made, look - made)
                losses[look] = yardstick.loss(model_on(MODEL, joiner.theta_P))
                made = look
            found[name].append(losses)
            sys.stderr.write(f"{name} {seed}: {losses}\n")
    sizes = {"none": 0, "compact": compact_count(MODEL, full.second_P), "full": 2 * len(theta_P)}
    before = yardstick.loss(model_on(MODEL, theta_P))
    return before, [row(name, losses, sizes[name], before) for name, losses in found.items()]


def row(name: str, losses: list[dict[int, float]], numbers: int, before: float) -> common.Row:
    medians: Mapping[str, float] = {
        f"after_{look}": 1000 * (statistics.median(loss[look] for loss in losses) - before)
        for look in LOOKS
    }
    return {"start": name, "seeds": len(losses), **medians, "moment_mb": 4 * numbers / 1e6}


def train(inner: Inner, tokens_N: Tensor, who: str, first: int, steps: int) -> None:
    """So many steps, the learning rate a line up and then constant."""
    peer: PeerId = peer_id(Digest(digest_of(who.encode())))
    for step in range(first, first + steps):
        inputs, targets = batch(
            tokens_N, seed=SEED, peer=peer, step=step, batch=INNER.batch, context=MODEL.context
        )
        inner.step(inputs, targets, INNER.lr * min(1.0, (step + 1) / WARMUP_STEPS))


if __name__ == "__main__":
    sys.exit(main())
