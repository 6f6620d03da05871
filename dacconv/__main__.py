"""``python -m dacconv``."""

from dacconv.cli import main

main()
