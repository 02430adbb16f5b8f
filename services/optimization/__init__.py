"""Optimizing a model: recipes of techniques, measured beside the original, judged by gates."""
