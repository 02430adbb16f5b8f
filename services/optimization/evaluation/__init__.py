"""Candidates beside their original: answers, quality, latency, footprint, verdicts."""
