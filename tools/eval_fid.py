"""Measure generated images: FID as pytorch_fid computes it, KID, or a distance without weights."""

import sys

from taskdistill.tasks.gan.metrics.cli import main

if __name__ == "__main__":
    sys.exit(main())
