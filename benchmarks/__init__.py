"""What Hone brings on this machine, as ratios measured in one run."""
