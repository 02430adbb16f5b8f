"""From a goal to the recipe that meets it, measured, and what that is worth."""
