"""Checkpoint files: what lies in them, opened without running code from them."""
