"""``python -m dacconv``."""

from dacconv.cli.app import main

main()
