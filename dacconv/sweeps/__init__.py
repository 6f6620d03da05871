"""Sweeps: one model split in many ways, each measured against the original."""
