"""The program on the small synthetic set, as a process of its own."""

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(Path(__file__).resolve())]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}

if __name__ == "__main__":
    from rsnn_fmnist import cli
    from rsnn_fmnist.data import splits

    splits.SYNTHETIC = {"train": (640, 1), "test": (200, 2)}
    sys.exit(cli.main())
