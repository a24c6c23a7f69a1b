"""`python -m s2robot` is the command `s2robot`."""

from s2robot.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
