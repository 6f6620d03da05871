"""Networks that are module trees: traced, run in parts and rewritten."""
