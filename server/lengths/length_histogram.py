"""The length histogram: past answer lengths by endpoint, max_tokens and prompt length.

The histogram needs no weights and learns from every finished request. A cell with few observations
is smoothed with the next wider cell (the same max_tokens, the same endpoint, everything), and the
widest cell with a prior for typical traffic, so that the first predictions are reasonable too.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Four bins for each doubling of the length, up to a million tokens.
_BINS_PER_OCTAVE, _NUM_OCTAVES = 4, 20
_CENTRES = 2.0 ** (np.arange(_NUM_OCTAVES * _BINS_PER_OCTAVE) / _BINS_PER_OCTAVE)
_LOGS = np.log(_CENTRES)
# Median, and standard deviation of the logarithm, in ShareGPT-like traffic.
_PRIOR_MEDIAN, _PRIOR_SPREAD = 126.0, 1.0
# The weight of the next wider cell, in observations of the cell itself.
_PARENT_WEIGHT = 4.0
# At this many observations a cell halves its counts, so that recent traffic dominates.
_MOST_COUNTED = 4096.0
_VERSION = 1

_Key = tuple[str, ...]
_Floats = NDArray[np.float64]


class HistogramError(ValueError):
    """The file does not contain a histogram of this version; the message is one log line."""


class LengthQuery(NamedTuple):
    """The properties of a request that are known before it runs."""

    endpoint: str
    num_prompt_tokens: int
    max_tokens: int


class Length(NamedTuple):
    """An expected length: the mean in tokens and the standard deviation of the logarithm."""

    mean: float
    spread: float


class LengthHistogram:
    """Counts of output lengths in cells, and predictions from them."""

    def __init__(self) -> None:
        self.num_observed = 0
        self._cells: dict[_Key, _Floats] = {}
        self._expected: dict[LengthQuery, Length] = {}  # until the next observation

    def predict(self, query: LengthQuery) -> Length:
        """Return the expected length of the answer to such a request."""
        if query not in self._expected:
            self._expected[query] = self._predict(query)
        return self._expected[query]

    def observe(self, query: LengthQuery, output_len: int) -> None:
        """Count an answer of `output_len` tokens (at least one)."""
        self.num_observed += 1
        self._expected.clear()
        bin_ = min(len(_CENTRES) - 1, round(math.log2(output_len) * _BINS_PER_OCTAVE))
        for key in _keys(query):
            counts = self._cells.setdefault(key, np.zeros(len(_CENTRES)))
            if counts.sum() >= _MOST_COUNTED:
                counts /= 2
            counts[bin_] += 1

    def save(self, path: Path) -> None:
        """Write the histogram to `path` atomically. Raises `OSError`."""
        cells = [
            [list(key), {int(bin_): round(float(counts[bin_]), 3) for bin_ in counts.nonzero()[0]}]
            for key, counts in self._cells.items()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({"version": _VERSION, "cells": cells}))
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LengthHistogram":
        """Load `path`, or return an empty one if missing. Raises `HistogramError`, `OSError`."""
        histogram = cls()
        try:
            text = path.read_text()
        except FileNotFoundError:
            return histogram
        except UnicodeDecodeError as error:
            raise HistogramError(f"{path} holds no lengths: it is not text") from error
        try:
            content = json.loads(text)
            if content["version"] != _VERSION:
                raise HistogramError(f"{path} is of version {content['version']}")
            for key, counts in content["cells"]:
                cell = np.zeros(len(_CENTRES))
                for bin_, count in counts.items():
                    cell[int(bin_)] = max(0.0, float(count))
                histogram._cells[tuple(map(str, key))] = cell
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise HistogramError(f"{path} holds no lengths: {error!r}") from error
        return histogram

    def _predict(self, query: LengthQuery) -> Length:
        part = _prior()
        for key in _keys(query):
            counts = self._cells.get(key)
            if counts is not None:
                part = (counts + _PARENT_WEIGHT * part) / (counts.sum() + _PARENT_WEIGHT)
        longest = math.log(query.max_tokens)
        logs = np.minimum(_LOGS, longest)
        mean_log = float(part @ logs)
        spread = math.sqrt(max(0.0, float(part @ (logs - mean_log) ** 2)))
        mean = float(part @ np.minimum(_CENTRES, query.max_tokens))
        return Length(max(1.0, mean), spread)


def _keys(query: LengthQuery) -> Iterator[_Key]:
    """Yield the cells of a request, from the widest to the narrowest."""
    most, prompt = str(query.max_tokens.bit_length()), str(query.num_prompt_tokens.bit_length())
    yield ()
    yield (query.endpoint,)
    yield (query.endpoint, most)
    yield (query.endpoint, most, prompt)


def _prior() -> _Floats:
    """Return the fraction of each bin before any observation."""
    part = np.exp(-(((_LOGS - math.log(_PRIOR_MEDIAN)) / _PRIOR_SPREAD) ** 2) / 2)
    prior: _Floats = part / part.sum()
    return prior
