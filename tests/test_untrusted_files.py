"""Files that were made to do harm: no code of theirs runs, no memory they declare is taken."""

import io
import pickle
import resource
import time
import zipfile

import numpy as np
import pytest

from triton_lu.cli.matrixfile import read
from triton_lu.command import InputError


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def npy(shape, data=b"", descr="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def archive(path, content, compress=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("A.npy", content)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickles_are_not_loaded(suffix, tmp_path):
    content = npy((2, 2), pickle.dumps([Bomb()] * 4), descr="|O")
    path = tmp_path / f"A{suffix}"
    path.write_bytes(content) if suffix == ".npy" else archive(path, content)
    with pytest.raises(InputError, match=r"allow_pickle|[Oo]bject"):
        read(path, print)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        read(path, print)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.mtx", "%%MatrixMarket matrix coordinate real general\n1000000000000 1000000000000 1\n1 1 1\n"),
        ("A.mtx", "%%MatrixMarket matrix array real general\n4294967296 4294967296\n1\n"),
        ("A.mtx", "%%MatrixMarket matrix coordinate real general\n2 2 99999999999999999999\n1 1 1\n"),
        ("A.mtx", f"%%MatrixMarket matrix coordinate real general\n{'9' * 5000} 1 1\n1 1 1\n"),
        ("A.mtx", "%%MatrixMarket matrix coordinate real general\n-3 -3 1\n1 1 1\n"),
        ("A.npy", npy((2**40, 2**20))),
        ("A.npy", npy((2**62, 2**62))),
        ("A.npy", npy((-1, 3), bytes(24))),
        ("A.npz", npy((2**40, 2**20))),
        ("A.npz", npy((2**30, 2**5))),
        ("A.npz", npy((2**62, 2**62))),
    ],
    ids=lambda x: x if isinstance(x, str) and len(x) == 5 else "",
)
def test_absurd_sizes_are_refused_at_once(name, content, tmp_path):
    path = tmp_path / name
    if path.suffix == ".npz":
        archive(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError, match=str(path)):
        read(path, print)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # 256 MiB, in KiB


def test_an_archive_that_unpacks_to_more_than_allowed(tmp_path):
    """Refused by the size that its directory declares, before anything is unpacked."""
    path = archive(tmp_path / "A.npz", npy((2, 2)))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**32 - 2).to_bytes(4, "little")  # its uncompressed size
    path.write_bytes(content)
    with pytest.raises(InputError):
        read(path, print)
