"""Hone's client."""
