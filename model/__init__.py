"""Few-shot heads: `CNN_FSHead`, the base class, and one file per method.

A method of one's own subclasses CNN_FSHead and writes `classify`; see the base class.

Letters, used throughout: B episodes, K way, N support videos of an episode, J shots of a class, Q queries, T frames,
S feature steps, D feature width, W tuple cardinality, M tuples of a video, E width of projected tuples.
"""

from model.cmn import CNN_CMN
from model.dual_prototypes import CNN_DualPrototypes
from model.head import CNN_FSHead, distribute
from model.otam import CNN_OTAM
from model.pal import CNN_PAL
from model.similarity import (
    CNN_BiMHM,
    CNN_Chamfer,
    CNN_ChamferPlusPlus,
    CNN_ChamferQuery,
    CNN_ChamferSupport,
    CNN_Diagonal,
    CNN_Linear,
    CNN_Max,
    CNN_Mean,
    CNN_Similarity,
)
from model.trx import CNN_TRX
from model.tsn import CNN_TSN

__all__ = [
    "CNN_CMN",
    "CNN_OTAM",
    "CNN_PAL",
    "CNN_TRX",
    "CNN_TSN",
    "CNN_BiMHM",
    "CNN_Chamfer",
    "CNN_ChamferPlusPlus",
    "CNN_ChamferQuery",
    "CNN_ChamferSupport",
    "CNN_Diagonal",
    "CNN_DualPrototypes",
    "CNN_FSHead",
    "CNN_Linear",
    "CNN_Max",
    "CNN_Mean",
    "CNN_Similarity",
    "distribute",
]
