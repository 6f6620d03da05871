"""PyTorch files: state dicts, pickled modules and exported programs."""
