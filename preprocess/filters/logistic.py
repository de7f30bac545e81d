"""The logistic function, with the same bits on every processor.

`np.exp` may return another last bit on a processor with other vector instructions, or for the same number at
another index of an array. A document whose score is close to a threshold would then be kept on one
machine and dropped on another. The functions here use only the four operations of arithmetic and
rounding, whose results IEEE 754 determines to the last bit, and each on a whole array, so that no compiler
joins two of them.
"""

from __future__ import annotations

import math

import numpy as np

MAX_EXPONENT = 700.0  # exp of larger numbers is not a float64
# log(2) in two parts; the first has few digits, so that its product with a whole number is exact.
LOG2_HIGH, LOG2_LOW = 0.6931471803691238, 1.9082149292705877e-10
# Of the Taylor series of exp, the highest power first. Its error is below 1e-17 for numbers up to log(2) / 2.
COEFFICIENTS = tuple(1 / math.factorial(n) for n in range(14, -1, -1))


def exp(x: np.ndarray) -> np.ndarray:
    """Return e to the power of `x`, both (N,) float64. `x` is clipped to ±MAX_EXPONENT."""
    x = np.clip(x, -MAX_EXPONENT, MAX_EXPONENT)
    powers = np.rint(x * (1 / math.log(2)))
    rest = (x - powers * LOG2_HIGH) - powers * LOG2_LOW
    series = np.zeros_like(rest)
    for coefficient in COEFFICIENTS:
        series = series * rest + coefficient
    scaled: np.ndarray = np.ldexp(series, powers.astype(np.int32))
    return scaled


def logistic(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), the probability whose log-odds are `x`, both (N,) float64."""
    return 1 / (1 + exp(-x))
