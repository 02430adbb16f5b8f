"""Judging and sealing what callers upload."""
