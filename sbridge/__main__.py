"""``python -m sbridge``."""

from sbridge.cli import main

if __name__ == "__main__":
    main()
