"""Files, progress, the machine and the user's own code."""
