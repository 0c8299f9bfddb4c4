"""``python -m deepinv_astro.cli``, the same as ``deepinv-astro``."""

from deepinv_astro.cli import app

if __name__ == "__main__":
    app()
