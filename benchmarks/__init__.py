"""What the kernels cost, and the results of all measurements."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))  # from a checkout that is not installed, too
