"""Measurements that need a checkout: errors, costs and times of kernels, all of a GPU; and the results of all."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))  # from a checkout that is not installed, too
