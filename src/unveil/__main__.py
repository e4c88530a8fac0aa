"""`python -m unveil`: the same as the command `unveil`, for use with torchrun."""

from unveil.cli import main

if __name__ == "__main__":
    main()
