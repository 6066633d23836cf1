"""`python -m secateur.cli`: the same as `secateur`."""

from secateur.cli import main

if __name__ == "__main__":
    main()
