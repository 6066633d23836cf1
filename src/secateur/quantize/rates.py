"""The bits of a code for symbols with given counts: the ideal (entropy), and a Huffman code.

>>> counts = np.array([4, 2, 1, 1])
>>> entropy_bits(counts), huffman_bits(counts)
(14.0, 14)
>>> entropy_bits(np.array([3, 1])), huffman_bits(np.array([3, 1])), huffman_bits(np.array([9]))
(3.2451124978365313, 4, 9)
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

__all__ = ["entropy_bits", "huffman_bits"]


def entropy_bits(counts: npt.NDArray[np.int64]) -> float:
    """Bits of all symbols together in an ideal code that knows their counts.

    Args:
        counts: How often each symbol occurs.
    """
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum()) if used.size else 0.0


def huffman_bits(counts: npt.NDArray[np.int64]) -> int:
    """Bits of all symbols together in a Huffman code; a single symbol still takes one bit each time.

    Args:
        counts: How often each symbol occurs.
    """
    heap = [int(count) for count in counts if count > 0]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        # Joining two nodes makes the code of every symbol below them one bit longer.
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total
