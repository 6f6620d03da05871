"""dacconv: smaller, faster convolutional networks from trained checkpoints, without data."""

__version__ = "0.1.0"
