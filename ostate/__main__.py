"""`python -m ostate`."""

from ostate.cli import main

if __name__ == "__main__":
    main()
