"""Inputs to calibrate on: drawn, distilled or the user's own."""
