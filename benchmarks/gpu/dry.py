"""What stands for Nsight Compute in a dry run: a script that runs the program and prints what `ncu` would."""

import sys
from pathlib import Path

LISTED = """\
Device NVIDIA H200 (GH100)
----------------------------------------------------------------- ----------- ------------- -------------------
Metric Name                                                       Metric Type Metric Unit   Metric Description
----------------------------------------------------------------- ----------- ------------- -------------------
gcc__cache_requests_type_instruction                              Counter     request       # of requests to GCC
gpu__time_duration                                                Counter     nanosecond    duration
sm__icc_requests                                                  Counter     cycle         # of requests to ICC
sm__icc_requests_lookup_miss                                      Counter     cycle         # of misses in ICC
smsp__average_warps_issue_stalled_no_instruction_per_issue_active Ratio       inst          average # of warps
smsp__average_warp_latency_issue_stalled_no_instruction           Ratio       cycle         average # of cycles
"""

COUNTED = """\
==PROF== Connected to process 1234 (/usr/bin/python3.12)
==PROF== Profiling "vjp_kernel" - 0: 0%....50%....100% - 2 passes
==PROF== Disconnected from process 1234
"ID","Process ID","Process Name","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum",\
"sm__icc_requests.sum","sm__icc_requests_lookup_miss.sum",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio"
"","","","","","","ns","cycle","cycle","inst","inst"
"0","1234","python3.12","vjp_kernel","(128, 1, 1)","(1, 1, 1)","81,376","6,049,376","610,955","2.25","4.5"
"""

_SCRIPT = """\
#!{python}
import subprocess, sys
if "--query-metrics" in sys.argv:
    print({listed!r})
else:
    subprocess.run(sys.argv[sys.argv.index({python!r}):], check=True)
    print({counted!r})
"""


def ncu(folder: Path) -> str:
    """The script, made in that folder."""
    file = folder / "ncu"
    file.write_text(_SCRIPT.format(python=sys.executable, listed=LISTED, counted=COUNTED))
    file.chmod(0o755)
    return str(file)
