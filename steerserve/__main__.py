"""Makes `python -m steerserve` the `steerserve` command."""

from steerserve.cli import main

main()
