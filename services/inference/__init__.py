"""Serves model versions: rows of different callers and lengths in one batch, answers remembered, versions swapped under load."""
