"""Simulated surveys, seeded and without download, and real sequences."""

from deepinv_astro.datasets.batching import BucketBatchSampler, collate_sequences, data_weights
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
from deepinv_astro.datasets.halos import Halo, PupilHalo, RicianHalo, Star, temporal_deviation
from deepinv_astro.datasets.manifest import (
    ManifestEntry,
    check_manifest,
    find_targets,
    read_manifest,
    write_manifest,
)
from deepinv_astro.datasets.population import DiskDraw, PlanetDraw, SkyDraw, SkyPopulation
from deepinv_astro.datasets.psf_error import PSFError, stretched_psf
from deepinv_astro.datasets.sequence_folder import SequenceFolder, cut_about
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
from deepinv_astro.datasets.survey import (
    Part,
    SurveyParts,
    SurveyTruth,
    SyntheticSurvey,
    target_seed,
)

__all__ = [
    "BETA_PICTORIS_FILES",
    "NACO_LP",
    "BetaPictoris",
    "BucketBatchSampler",
    "Coronagraph",
    "DiskDraw",
    "Halo",
    "IdealCoronagraph",
    "LyotCoronagraph",
    "ManifestEntry",
    "NoCoronagraph",
    "PSFError",
    "Part",
    "Planet",
    "PlanetDraw",
    "PlanetTruth",
    "PupilHalo",
    "RicianHalo",
    "SequenceFolder",
    "SequenceStatistics",
    "SimulatedSequence",
    "SkyDraw",
    "SkyPopulation",
    "SpeckleFrames",
    "SpeckleModel",
    "Star",
    "SurveyParts",
    "SurveyTruth",
    "SyntheticSurvey",
    "check_manifest",
    "collate_sequences",
    "cut_about",
    "data_weights",
    "demo_sequence",
    "detect",
    "find_targets",
    "gaussian_blob",
    "henyey_greenstein",
    "isotropic",
    "point_sources",
    "read_manifest",
    "ring",
    "sequence_statistics",
    "simulate_sequence",
    "sky_offset",
    "speckle_frames",
    "spiral",
    "stretched_psf",
    "target_seed",
    "temporal_deviation",
    "two_component_henyey_greenstein",
    "write_manifest",
]
