"""Search a trained once-for-all generator for its best sub-network under a budget."""

import sys

from taskdistill.tasks.gan.search.cli import main

if __name__ == "__main__":
    sys.exit(main())
