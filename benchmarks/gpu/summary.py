"""What to look at first, in about ten lines."""

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from benchmarks.gpu.table import Row, Table
from triton_lu.bench import run
from triton_lu.calibration import LARGEST

MOST = 4  # examples in a line
NUMBERS = ("ms", "speedup", "us", "copy_us", "host_us", "value", "largest")


def lines(tables: Mapping[str, Table]) -> list[tuple[str, str]]:
    """What is looked at, and what there is to see."""
    frames = {name: _frame(table) for name, table in tables.items()}
    steps, kernels, host, counted = (frames[name] for name in ("steps", "kernels", "host", "counters"))
    checks, crossovers = frames["checks"], frames["calibration"]
    ours = steps[(steps.provider == "triton_lu") & steps.speedup.notna()]
    planned, others = (kernels[(kernels.planned == str(yes)) & kernels.us.notna()] for yes in (True, False))
    return [
        ("wrong or failed checks", _failed(checks)),
        ("failed, other than those", _failed(pd.concat([steps, kernels[kernels.planned != "False"], host, counted]))),
        ("slower than PyTorch", _slower(ours[ours.timer == run.EVENTS])),
        ("also as CUDA graphs", _slower(ours[ours.timer == run.GRAPHS])),
        ("longest beside their graphs", _beside_graphs(ours)),
        ("kernels furthest above a copy", _worst(planned, planned.us / planned.copy_us, _kernel, "{:.1f}×")),
        ("host, longest calls", _worst(host, host.host_us, lambda row: f"{row['call']} {_size(row)}", "{:.0f} µs")),
        ("choices faster than the plan by 5 %", _better(planned, others)),
        ("warps without an instruction", _stalls(counted)),
        ("kernels that lose to ATen", _losing(crossovers)),
    ]


def failed(tables: Mapping[str, Table]) -> int:
    """How many rows failed; kernels in other configurations than the plan's may."""
    rows = [row for table in tables.values() for row in table.rows if row.get("planned") != "False"]
    return sum(row["status"].startswith("failed") for row in rows)


def _frame(table: Table) -> pd.DataFrame:
    frame = pd.DataFrame(table.rows, columns=list(table.columns), dtype=str)
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in NUMBERS if name in frame})


def _examples(found: Iterable[str], total: int) -> str:
    shown = list(found)
    return f"{total}: " + "; ".join(shown) if shown else "none"


def _size(row: Row) -> str:
    return "×".join(str(row[name]) for name in ("batch", "m", "n"))


def _kernel(row: Row) -> str:
    return f"{row['kernel']} {_size(row)} {row['dtype']}"


def _step(row: Row) -> str:
    return f"{row['problem']} {_size(row)} {row['dtype']}"


def _failed(frame: pd.DataFrame) -> str:
    rows = frame[frame.status.str.startswith("failed")].fillna("")
    named = ("check", "problem", "call", "kernel", "batch", "m", "n", "dtype", "provider", "timer", "status")
    texts = [" ".join(filter(None, (str(getattr(row, name, "")) for name in named))) for row in rows.itertuples()]
    return _examples((text[:160] for text in texts[:MOST]), len(texts)) + f" (of {len(frame)})"


def _worst(frame: pd.DataFrame, values: pd.Series, name: Callable[[Row], str], form: str) -> str:
    order = values.sort_values(ascending=False).index[:MOST]
    return _examples((f"{name(frame.loc[i].to_dict())} {form.format(values[i])}".strip() for i in order), len(frame))


def _slower(frame: pd.DataFrame) -> str:
    rows = frame[frame.speedup < 1]
    return _worst(rows, 1 / rows.speedup, _step, "{:.1f}×") + f" (of {len(frame)})"


def _beside_graphs(ours: pd.DataFrame) -> str:
    key = ["problem", "batch", "m", "n", "dtype"]
    both = ours[ours.timer == run.EVENTS].merge(ours[ours.timer == run.GRAPHS], on=key, suffixes=("", "_graph"))
    return _worst(both, both.ms / both.ms_graph, _step, "{:.1f}×")


def _better(planned: pd.DataFrame, others: pd.DataFrame) -> str:
    key = ["kernel", "batch", "m", "n", "dtype"]
    both = others.merge(planned, on=key, suffixes=("", "_planned"))
    gain = (both.us_planned / both.us)[lambda ratio: ratio > 1.05]
    best = gain.groupby([both.loc[gain.index, name] for name in key]).idxmax() if len(gain) else gain.index
    return _worst(both.loc[best], gain.loc[best], lambda row: f"{_kernel(row)} {row['plan']}", "{:.2f}×")


def _stalls(counted: pd.DataFrame) -> str:
    rows = counted[counted.metric.str.contains("stalled_no_instruction_per_issue")]
    return _worst(rows, rows.value, _kernel, "{:.1f}")


def _losing(crossovers: pd.DataFrame) -> str:
    rows = crossovers[crossovers.largest < LARGEST]
    return _worst(rows, -rows.largest, lambda row: f"{row['name']} above {row['largest']:.0f}", "")
