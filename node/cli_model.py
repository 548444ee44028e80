"""The commands that use the trained model: `shoal export` and `shoal sample`.

They read the files of the data directory, so the node may run or not.  torch is imported only
when one of them is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from node.cli_node import DataDir
from node.config import load_node_config
from node.telemetry import harmless
from node.view import size
from protocol.ids import short

app = typer.Typer()


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    format: Annotated[
        str, typer.Option(help="hf: what transformers loads; safetensors: the bare parameters.")
    ] = "hf",
    round: Annotated[str, typer.Option(help="A round that there is a snapshot of.")] = "newest",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure the validation loss.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Write the trained model into a folder that other programs read."""
    from node.export import Options, export_model  # here, for it brings torch

    done = export_model(
        Options(
            config=load_node_config(data_dir, {}),
            target=directory,
            format=format,
            round=round,
            force=force,
            evaluate=evaluate,
        )
    )
    _tell(done.note)
    print(f"{done.folder}: {size(done.size_bytes)}, round {done.round} of run {short(done.run)}")
    if done.loss is not None:
        print(f"validation loss: {done.loss:.6f} nats per byte")


@app.command()
def sample(
    prompt: Annotated[str, typer.Argument(help="The text to go on with; -: standard input.")] = "",
    tokens: Annotated[int, typer.Option(help="How many more.")] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Of the so many most probable; 0: of all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Of the most probable that have this probability together.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="The same text again.  [default: another one each time]")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Go on with a prompt, as the trained model would."""
    from node.sample import Options, read_prompt, sample_model  # it brings torch

    sampled = sample_model(
        Options(
            config=load_node_config(data_dir, {}),
            prompt=read_prompt(prompt, sys.stdin.buffer),
            tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
    )
    is_terminal = sys.stdout.isatty()
    _tell(sampled.note)
    for piece in sampled.pieces:
        text = harmless(piece, but="\n\t") if is_terminal else piece
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    print(flush=True)


def _tell(note: str) -> None:
    if note:
        print(f"shoal: newer snapshots were left out: {note}", file=sys.stderr)
