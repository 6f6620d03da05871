"""Arrays in, arrays out: the mathematics, with no model in sight."""
