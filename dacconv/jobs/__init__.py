"""Whole jobs, file in and file out: convert, fuse, check, sweep, many models, a release."""
