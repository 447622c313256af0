"""`python -m personae`: the command line, for launchers that start modules."""

from personae.cli.main import main

main()
