"""`python -m golf_referee` is `golf-referee`."""

import sys

from golf_referee import main

if __name__ == "__main__":
    sys.exit(main())
