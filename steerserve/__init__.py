"""Serve one language model whose requests carry edits of sparse-autoencoder features."""

__version__ = "0.1.0"

__all__ = ["__version__"]
