"""`python -m workers.cli` is `masterkey`."""

from workers.cli import main

main()
