"""What a page tells first where a job was given a goal: the recommendation, for whoever decides about it."""
