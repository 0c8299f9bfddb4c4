"""Simulated surveys, seeded and without download, and real sequences."""

from deepinv_astro.datasets.betapic import BETA_PICTORIS_FILES, BetaPictoris
from deepinv_astro.datasets.coronagraph import (
    Coronagraph,
    IdealCoronagraph,
    LyotCoronagraph,
    NoCoronagraph,
)
from deepinv_astro.datasets.disks import (
    gaussian_blob,
    henyey_greenstein,
    isotropic,
    point_sources,
    ring,
    sky_offset,
    spiral,
    two_component_henyey_greenstein,
)
from deepinv_astro.datasets.simulate import (
    Planet,
    PlanetTruth,
    SimulatedSequence,
    demo_sequence,
    simulate_sequence,
)
from deepinv_astro.datasets.speckles import (
    NACO_LP,
    SpeckleFrames,
    SpeckleModel,
    detect,
    speckle_frames,
)
from deepinv_astro.datasets.statistics import SequenceStatistics, sequence_statistics

__all__ = [
    "BETA_PICTORIS_FILES",
    "NACO_LP",
    "BetaPictoris",
    "Coronagraph",
    "IdealCoronagraph",
    "LyotCoronagraph",
    "NoCoronagraph",
    "Planet",
    "PlanetTruth",
    "SequenceStatistics",
    "SimulatedSequence",
    "SpeckleFrames",
    "SpeckleModel",
    "demo_sequence",
    "detect",
    "gaussian_blob",
    "henyey_greenstein",
    "isotropic",
    "point_sources",
    "ring",
    "sequence_statistics",
    "simulate_sequence",
    "sky_offset",
    "speckle_frames",
    "spiral",
    "two_component_henyey_greenstein",
]
