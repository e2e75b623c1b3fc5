"""Few-shot heads: `CNN_FSHead`, the base class, and one file per method.

A method of one's own subclasses CNN_FSHead and writes `classify`; see the base class.

Letters, used throughout: B episodes, K way, N support videos of an episode, J shots of a class, Q queries, T frames,
S feature steps, D feature width, W tuple cardinality, M tuples of a video, E width of projected tuples.
"""

from model.head import CNN_FSHead
from model.trx import CNN_TRX
from model.tsn import CNN_TSN

__all__ = ["CNN_FSHead", "CNN_TRX", "CNN_TSN"]
