"""Small files: models rounded, entropy-coded and put into one container."""
