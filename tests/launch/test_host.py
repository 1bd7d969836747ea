"""The table of what calls cost the host."""

import re

import pytest

from benchmarks import host


def test_every_call_has_its_time(capsys, monkeypatch):
    monkeypatch.setattr(host, "TURNS", 2)
    monkeypatch.setattr("sys.argv", ["host", "--sizes", "2x4x4"])
    host.main()
    rows = re.findall(r"^ *(\S.*?) +([0-9.]+) +([0-9.]+) *$", capsys.readouterr().out, flags=re.MULTILINE)
    found = {name: (float(us), float(times)) for name, us, times in rows}
    assert found.keys() == {"A * 2", *host.CALLS} - {"lu_solve"}
    unit, one = found["A * 2"]
    assert one == 1
    assert all(times == pytest.approx(us / unit, rel=0.1, abs=0.1) for us, times in found.values())
