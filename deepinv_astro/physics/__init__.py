"""Forward operators."""

from deepinv_astro.physics.adi import ADI, TransmissionOrder

__all__ = ["ADI", "TransmissionOrder"]
