"""`python -m ostate`."""

from ostate.cli import run

if __name__ == "__main__":
    run()
