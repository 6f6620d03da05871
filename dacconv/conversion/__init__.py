"""The path from an opened model to a verified one, and the report of what was done."""
