"""How often each token of the vocabulary occurs in the splits of a build, and how alike the splits are."""

from __future__ import annotations

import numpy as np

from preprocess.shards.format import Build

CHUNK_TOKENS = 1 << 22


def count_tokens(build: Build, split: str) -> np.ndarray:
    """Return the number of occurrences of each id in `split`, (V,) int64.

    All tokens are read, in chunks, one shard after the other. Raises FolioError for an id outside the
    vocabulary.
    """
    counts = np.zeros(build.vocab_size, np.int64)
    for tokens in build.iter_tokens(split, CHUNK_TOKENS):
        counts += np.bincount(build.check_ids(tokens), minlength=build.vocab_size)
    return counts


def share_of_new_tokens(train: np.ndarray, val: np.ndarray) -> float:
    """Return the fraction of the validation tokens whose id never occurs in the training split.

    `train`, `val`: (V,), the counts of each id. Returns 0 without validation tokens.
    """
    return float(val[train == 0].sum() / max(int(val.sum()), 1))


def compute_divergence(train: np.ndarray, val: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of the token distributions of the splits, in bits.

    It is 0 for equal distributions and 1 for those without a common token (Lin 1991, "Divergence
    measures based on the Shannon entropy"). Small splits differ by chance. `train`, `val`: (V,), the
    counts of each id; neither may be all 0.
    """
    p, q = train / train.sum(), val / val.sum()
    return float((_relative_entropy(p, (p + q) / 2) + _relative_entropy(q, (p + q) / 2)) / 2)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    is_used = p > 0
    return float((p[is_used] * np.log2(p[is_used] / q[is_used])).sum())
