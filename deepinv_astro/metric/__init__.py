"""What astronomers report: S/N, throughput, contrast, errors of disks."""

from deepinv_astro.metric.disk import (
    DiskNRMSE,
    FalseStructure,
    false_structure,
    flux_ratio,
    nrmse_db,
    remove_invisible,
    support,
)
from deepinv_astro.metric.snr import (
    SmallSampleSNR,
    aperture_sums,
    false_alarm_probability,
    gaussian_sigma,
    reference_count,
    snr,
    snr_map,
    snr_threshold,
    two_sample,
)
from deepinv_astro.metric.throughput import ContrastCurve, Throughput, contrast_curve, throughput

__all__ = [
    "ContrastCurve",
    "DiskNRMSE",
    "FalseStructure",
    "SmallSampleSNR",
    "Throughput",
    "aperture_sums",
    "contrast_curve",
    "false_alarm_probability",
    "false_structure",
    "flux_ratio",
    "gaussian_sigma",
    "nrmse_db",
    "reference_count",
    "remove_invisible",
    "snr",
    "snr_map",
    "snr_threshold",
    "support",
    "throughput",
    "two_sample",
]
