"""Matrices from files: NumPy's `.npy` and `.npz`, and Matrix Market's `.mtx`.

Files are not trusted: nothing is unpickled, and no size that a file declares is allocated before it is checked.
"""

from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from triton_lu.command import InputError

LIMIT = 2**28
"""The most elements of a dense array that is read."""


def read(path: Path) -> dict[str, Tensor]:
    """The matrices [m, n] and batches of matrices [..., m, n] of a file, by name.

    float32, float64, complex64 and complex128 stay what they are; integers and booleans become float64, float16
    becomes float32.

    Raises:
        InputError: there is no such file, or it does not hold matrices.
    """
    readers = {".npy": _read_numpy, ".npz": _read_numpy, ".mtx": _read_matrix_market}
    try:
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise InputError(f"expected a file name ending in {', '.join(readers)}")
        arrays = reader(path)
        if not arrays:
            raise InputError("holds no array")
        return {name: _to_tensor(name, array) for name, array in arrays.items()}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: does not fit in memory") from error
    except (InputError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _to_tensor(name: str, array: object) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is no array")
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"expected a matrix or a batch of matrices with elements; {name} has shape {array.shape}")
    _require_size(array.shape)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind in "biu":
        dtype = np.dtype(np.float64)
    elif (kind, size) in (("f", 2), ("f", 4), ("f", 8), ("c", 8), ("c", 16)):
        dtype = np.dtype(f"{kind}{max(size, 4)}")
    else:
        raise InputError(f"expected real or complex numbers of at most double precision; {name} is of {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _require_size(shape: tuple[int, ...]) -> None:
    if prod(shape) > LIMIT:
        raise InputError(f"{'×'.join(map(str, shape))} is more than the {LIMIT} elements allowed")


def _read_numpy(path: Path) -> dict[str, object]:
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")  # mapped, a file shorter than its shape is an error
        if isinstance(loaded, np.ndarray):
            return {path.stem: loaded}
        with loaded:
            for member in loaded.zip.infolist():
                if member.file_size > 16 * LIMIT:
                    raise InputError(f"{member.filename} has {member.file_size} bytes, more than allowed")
            return {name: loaded[name] for name in loaded.files}
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # NumPy, zipfile and zlib have many types of them for a damaged file
        reason = str(error) or type(error).__name__
        pickled = "pickle" in reason or "Python objects" in reason  # and NumPy's advice is to trust the file
        raise InputError("no file of NumPy, or one of Python objects" if pickled else reason) from error


def _read_matrix_market(path: Path) -> dict[str, object]:
    """Every entry of the format, https://math.nist.gov/MatrixMarket/formats.html; entries given twice add up."""
    header, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    layout, field, symmetry = _parse_header(header)
    size, *data = [line for line in lines if line.strip() and not line.startswith("%")] or [""]
    m, n, count = _parse_size(size, layout, symmetry)
    words = " ".join(data).split()
    indices = 2 if layout == "coordinate" else 0
    dtype = np.dtype(np.complex128 if field == "complex" else np.float64)
    width = indices + {"pattern": 0, "complex": 2}.get(field, 1)
    if len(words) != count * width:
        raise InputError(f"declares {count} entries, {count * width} numbers; holds {len(words)}")
    table = np.array(words, dtype=np.float64).reshape(count, width)
    value = np.ones(count) if field == "pattern" else table[:, indices:].copy().view(dtype).reshape(count)
    i, j = _parse_indices(table, m, n) if indices else _by_columns(m, n, symmetry)
    if symmetry != "general" and (i < j + (symmetry == "skew-symmetric")).any():
        raise InputError(f"a {symmetry} matrix is given by its lower triangle; there are entries outside of it")
    A = np.zeros((m, n), dtype=value.dtype)
    np.add.at(A, (i, j), value)
    if symmetry != "general":
        mirror = {"symmetric": value, "skew-symmetric": -value, "hermitian": value.conj()}[symmetry]
        off = i != j
        np.add.at(A, (j[off], i[off]), mirror[off])
    return {path.stem: A}


def _parse_header(header: str) -> tuple[str, str, str]:
    """(layout, field, symmetry)."""
    match header.lower().split():
        case [
            "%%matrixmarket",
            "matrix",
            "coordinate" | "array" as layout,
            "real" | "complex" | "integer" | "pattern" as field,
            "general" | "symmetric" | "skew-symmetric" | "hermitian" as symmetry,
        ] if (layout, field) != ("array", "pattern"):
            return layout, field, symmetry
    raise InputError(
        "expected the header '%%MatrixMarket matrix coordinate|array real|complex|integer|pattern "
        f"general|symmetric|skew-symmetric|hermitian'; got {header[:80]!r}"
    )


def _parse_size(line: str, layout: str, symmetry: str) -> tuple[int, int, int]:
    """(rows, columns, entries in the file)."""
    expected = "m n entries" if layout == "coordinate" else "m n"
    words = line.split()
    if len(words) != len(expected.split()) or not all(word.isdecimal() for word in words):
        raise InputError(f"expected a line of sizes, {expected}; got {line[:80]!r}")
    m, n, *entries = map(int, words)
    _require_size((m, n))
    if symmetry != "general" and m != n:
        raise InputError(f"a {symmetry} matrix must be square; got {m}×{n}")
    triangle = {"general": m * n, "skew-symmetric": n * (n - 1) // 2}.get(symmetry, n * (n + 1) // 2)
    return m, n, entries[0] if entries else triangle


def _parse_indices(table: np.ndarray, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    i, j = table[:, 0] - 1, table[:, 1] - 1
    fits = (i >= 0) & (i < m) & (j >= 0) & (j < n) & (i == np.floor(i)) & (j == np.floor(j))
    if not fits.all():
        k = int(np.argmin(fits))
        raise InputError(f"entry {k + 1} is at {table[k, 0]:g}, {table[k, 1]:g}: not in a {m}×{n} matrix")
    return i.astype(np.int64), j.astype(np.int64)


def _by_columns(m: int, n: int, symmetry: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of the entries of a dense file."""
    if symmetry == "general":
        j, i = np.indices((n, m)).reshape(2, -1)
    else:
        j, i = np.triu_indices(n, k=1 if symmetry == "skew-symmetric" else 0)
    return i, j
