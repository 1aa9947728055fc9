"""Iterative label refinement (ICLR 2025, arXiv 2501.07886) in JAX and Flax."""

__version__ = "0.1.0"
