"""`python -m unspool` is `unspool`; torchrun starts it so."""

from unspool.cli import main

main()
