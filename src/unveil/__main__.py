"""`python -m unveil`, for torchrun."""

from unveil.cli import main

if __name__ == "__main__":
    main()
