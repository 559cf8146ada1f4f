"""`python -m dnassm` is the `dnassm` command."""

from dnassm.pipelines.cli import main

main()
