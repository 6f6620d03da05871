"""Inputs that stand in for data, and the layers' outputs reproduced on them."""
