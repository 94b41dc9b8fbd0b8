"""Cutting a signal that comes in pieces of any sizes into blocks of one size."""

from collections.abc import Iterable, Iterator

import numpy as np


def equal_blocks(pieces: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """Joins and cuts pieces of a signal.

    Args:
      pieces: float [C, n], n >= 0, all of the same C: the signal, one piece after another.
      block_samples: length of the blocks.

    Yields:
      float32 [C, block_samples], and a last one that is shorter, or empty where the signal is whole blocks, so that the
      end is seen; nothing where there are no pieces.
    """
    block, count = None, 0
    for piece in pieces:
        if block is None:
            block = np.empty((len(piece), block_samples), np.float32)
        done = 0
        while done < piece.shape[1]:
            part = piece[:, done : done + block_samples - count]
            block[:, count : count + part.shape[1]] = part
            count, done = count + part.shape[1], done + part.shape[1]
            if count == block_samples:
                yield block
                # Not the same array again: on a CPU jax may still be reading the one before.
                block, count = np.empty_like(block), 0
    if block is not None:
        yield block[:, :count]
