"""State dicts, with their architecture or without."""
