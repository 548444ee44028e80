"""Movie-review sentences with the sign of a human rating, to train and to test on.

They lie in a source package of PyPI as a file of lines: number, mean rating of 20 people in
[-4, 4], sentence.  Ratings below 0.5 in magnitude are left out: those are of neither class.

Source: Hutto and Gilbert, "VADER", ICWSM 2014; the sentences are from Pang and Lee 2004.
"""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from node.bench.packages import Package, archive

VADER = Package(
    requirement="vaderSentiment==0.5",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    is_source=True,
)
INNER_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LEAST_RATING = 0.5


@dataclass(frozen=True, slots=True)
class Sentences:
    """Texts, and for each whether its rating is positive."""

    texts: tuple[str, ...]
    labels: tuple[bool, ...]


def movie_sentences(cache: Path) -> Sentences:
    """All 10,072 of them, in an order that is shuffled once and for all.

    Raises:
        ConfigError: the package cannot be had.
    """
    with zipfile.ZipFile(archive(VADER, cache)) as package:
        inner = package.read(INNER_ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(inner)) as files:
        file = files.extractfile(RATINGS)
        assert file is not None, "a pinned archive"
        lines = file.read().decode().splitlines()
    rated = [line.split("\t") for line in lines]
    chosen = [
        (text, float(rating)) for _, rating, text in rated if abs(float(rating)) >= LEAST_RATING
    ]
    random.Random(0).shuffle(chosen)
    return Sentences(tuple(text for text, _ in chosen), tuple(r > 0 for _, r in chosen))
