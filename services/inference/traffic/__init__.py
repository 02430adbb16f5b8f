"""Calls split among versions: routing, shadow copies, outcomes with a test that may be read at any time, guardrails."""
