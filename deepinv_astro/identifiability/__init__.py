"""What an operator can and cannot see."""

from deepinv_astro.identifiability.adi import mode_visibility, visibility

__all__ = ["mode_visibility", "visibility"]
