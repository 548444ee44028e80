"""An exported folder as transformers loads it: equal loss, equal tokens, equal text."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from samples import CREATOR
from small_run import TEXT
from torch import Generator, Tensor, nn
from trained_run import TrainedRun, trained_run

from node import hugging_face
from node.export import OURS, write_folder
from node.trained import read_trained
from node.worker.materials import read_validation
from trainers.model import model_on
from trainers.sampling import SamplingConfig, continuation
from trainers.tokenizer import encode, load_tokenizer

pytestmark = pytest.mark.timeout(180)
"""Importing transformers takes four seconds alone, and more on a busy machine."""

LOSS = 5.4321


@dataclass(frozen=True, slots=True)
class Loaded:
    """The folder, and what transformers makes of it."""

    run: TrainedRun
    folder: Path
    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    root = tmp_path_factory.mktemp("hf")
    run = trained_run(root, 3)
    folder = root / "out"
    write_folder(folder, hugging_face.folder(read_trained(run.directory), LOSS), force=False)
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.disable_progress_bar()
    return Loaded(
        run,
        folder,
        transformers.GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval(),
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


class AsOurs(nn.Module):
    """Their model with our interface: tokens (B, T) to logits (B, T, V)."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs
        self.tokens = theirs.transformer.wte

    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.theirs(tokens_BT).logits
        return logits_BTV


def test_the_loss_on_the_validation_text_is_equal(loaded: Loaded) -> None:
    run = loaded.run
    paths = [str(run.blob(name)) for name in ("tokenizer", "validation")]
    validation = read_validation(run.spec, *paths)
    ours = validation.loss(model_on(run.spec.model, run.weights(3)))
    theirs = validation.loss(AsOurs(loaded.model))  # type: ignore[arg-type]
    assert theirs == pytest.approx(ours, rel=1e-6)


def test_fifty_tokens_of_greedy_text_are_equal(loaded: Loaded) -> None:
    spec = loaded.run.spec
    prompt = loaded.tokenizer("the quick brown", return_tensors="pt")
    theirs = loaded.model.generate(**prompt, max_new_tokens=50, do_sample=False)[0].tolist()
    ids = prompt.input_ids[0].tolist()
    ours = continuation(
        model_on(spec.model, loaded.run.weights(3)),
        spec.model,
        ids,
        SamplingConfig(temperature=0.0),
        Generator(),
        vocab=spec.model.vocab,
    )
    assert theirs == [*ids, *islice(ours, 50)]


@pytest.mark.parametrize(
    "text", [TEXT, "h\u00e9llo \u65e5\u672c \U0001f41f", " a  b\n\n\t c ", "don't . , stop"]
)
def test_the_tokenizer_cuts_as_ours_and_gives_the_text_back(loaded: Loaded, text: str) -> None:
    bpe = load_tokenizer(loaded.run.blob("tokenizer").read_bytes(), loaded.run.spec.model.vocab)
    ids = loaded.tokenizer(text).input_ids
    assert ids == list(encode(bpe, text))
    assert loaded.tokenizer.decode(ids) == text


def test_every_parameter_is_there_and_no_other(loaded: Loaded) -> None:
    count = sum(part.numel() for part in loaded.model.parameters())
    assert count == loaded.run.weights(3).numel()
    transformers: Any = importlib.import_module("transformers")
    _, report = transformers.GPT2LMHeadModel.from_pretrained(
        loaded.folder, local_files_only=True, output_loading_info=True
    )
    wrong = ("missing_keys", "unexpected_keys", "mismatched_keys")
    assert {kind: list(report[kind]) for kind in wrong} == {kind: [] for kind in wrong}


def test_the_model_has_no_dropout_no_special_tokens_and_our_epsilon(loaded: Loaded) -> None:
    config = loaded.model.config
    assert (config.bos_token_id, config.eos_token_id) == (None, None)
    assert (config.attn_pdrop, config.embd_pdrop, config.resid_pdrop) == (0.0, 0.0, 0.0)
    assert config.layer_norm_epsilon == nn.LayerNorm(1).eps
    assert loaded.model.generation_config.eos_token_id is None
    assert loaded.tokenizer.all_special_ids == []


def test_the_folder_says_of_which_run_and_round_it_is_and_how_good(loaded: Loaded) -> None:
    run = loaded.run.spec.run.hex()
    assert {path.name for path in loaded.folder.iterdir()} == OURS
    config = json.loads((loaded.folder / "config.json").read_text())
    assert config["shoal"] == {"run": run, "round": 3}
    card = (loaded.folder / "README.md").read_text()
    for line in (f"| run | `{run}` |", "| round | 3 of 10 |", "| trainer | noloco |",
                 "| validation loss | 5.4321 nats per byte |"):  # fmt: skip
        assert line in card.splitlines()


def test_the_card_takes_no_markup_from_the_name_of_a_run(loaded: Loaded) -> None:
    trained = read_trained(loaded.run.directory)
    spec = replace(trained.spec, name="a](x) # b<i>", creator=CREATOR.peer)
    card = hugging_face.folder(replace(trained, spec=spec), None)["README.md"].decode()
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# a  x    b i"]
    assert "| validation loss | not measured |" in card
