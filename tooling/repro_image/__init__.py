"""LLM inference images that provably answer the same."""

__version__ = "0.1.0"
