"""`python -m tpfx`: the command line."""

from .cli import main

main()
