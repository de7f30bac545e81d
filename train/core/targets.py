"""The target that does not count: outside of the loss mask, or padding of a packed row.

Such a target is IGNORE_INDEX (preprocess/shards/loss_mask.py and packing.py). A model gives it the
loss 0 and no gradient, and divides the sum of the losses by the number of all targets, as if all
counted. So the mean over the targets that count is the model's mean divided by the fraction of the
targets that count. Training knows this fraction for a whole step before the first forward pass: the
samples of a step are a function of their numbers, and the mask is on the disk
(`Prefetcher.loss_divisor`). So every token that counts has the same weight, for any number of
micro-batches and processes.
"""

from __future__ import annotations

IGNORE_INDEX = -100  # the default of torch.nn.functional.cross_entropy
