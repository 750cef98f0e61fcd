"""`python -m flows.cli` is `bincount`."""

from flows.cli import main

main()
