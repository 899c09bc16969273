"""`python -m mesh.cli`: the command without its script."""

from mesh.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
