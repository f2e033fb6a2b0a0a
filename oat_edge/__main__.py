"""`python -m oat_edge` is the command `oat-edge`."""

from oat_edge.cli import main

if __name__ == "__main__":
    main()
