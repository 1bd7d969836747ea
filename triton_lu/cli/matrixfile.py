"""Matrices from files: NumPy's `.npy` and `.npz`, PyTorch's `.pt`, and Matrix Market's `.mtx`, also as `.mtx.gz`.

Files are not trusted: no objects are unpickled, and no size that a file declares is allocated before it is checked.
"""

import gzip
import pickle
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from torch import Tensor

from triton_lu.command import InputError
from triton_lu.validation import DTYPES, HALF

LIMIT = 2**28
"""The most elements of a dense array that is read."""
STANDARD_INPUT = Path("-")


def read(path: Path, report: Callable[[str], object]) -> dict[str, Tensor]:
    """The matrices [m, n] and batches of matrices [..., m, n] of a file, by name; of what kind it is, its content says.

    float32, float64, complex64 and complex128 stay what they are; integers and booleans become float64, float16 and
    bfloat16 float32. Arrays that are no matrices are left out, with a line to `report`.

    Raises:
        InputError: there is no such file, or it holds no matrices.
    """
    if path == STANDARD_INPUT:
        with NamedTemporaryFile(prefix="standard-input-") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
            return _read(Path(file.name), "standard input", report)
    return _read(path, str(path), report)


def _read(path: Path, called: str, report: Callable[[str], object]) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
        arrays = _reader(head)(path)
    except OSError as error:
        raise InputError(f"{called}: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"{called}: does not fit in memory") from error
    except (InputError, ValueError) as error:
        raise InputError(f"{called}: {error}") from error
    matrices, unusable = {}, []
    for name, array in arrays.items():
        name = name or Path(called.removesuffix(".gz")).stem
        try:
            matrices[name] = _to_tensor(name, array)
        except InputError as error:
            unusable.append(f"{called}: {error}")
    if not matrices:
        raise InputError(unusable[0] if unusable else f"{called}: holds no array")
    for line in unusable:
        report(f"left out: {line}")
    return matrices


def _reader(head: bytes) -> Callable[[Path], Mapping[str, object]]:
    """What reads a file that begins so: arrays by name ("" for that of the file), or in their place what is wrong."""
    readers = {b"\x93NUMPY": _read_npy, b"PK": _read_archive, b"%%matrixmarket": _read_matrix_market}
    for magic, reader in {**readers, b"\x1f\x8b": _read_gzip}.items():
        if head.lower().startswith(magic.lower()):
            return reader
    raise InputError(f"expected a file of .npy, .npz, .pt, .mtx or .mtx.gz format; it {_beginning(head)}")


def _beginning(head: bytes) -> str:
    return f"begins with {head.decode('ascii', 'replace')!r}" if head else "is empty"


def _to_tensor(name: str, array: object) -> Tensor:
    if isinstance(array, InputError):
        raise array
    if not isinstance(array, (np.ndarray, Tensor)):
        raise InputError(f"{name} is no array")
    if isinstance(array, Tensor) and array.is_nested:  # which has no shape
        raise InputError(f"{name} is no dense tensor")
    if array.ndim < 2 or 0 in array.shape:
        raise InputError(
            f"expected a matrix or a batch of matrices with elements; {name} has shape {tuple(array.shape)}"
        )
    _require_size(tuple(array.shape))
    if isinstance(array, Tensor):
        return _dense(name, array)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind in "biu":
        dtype = np.dtype(np.float64)
    elif (kind, size) in (("f", 2), ("f", 4), ("f", 8), ("c", 8), ("c", 16)):
        dtype = np.dtype(f"{kind}{max(size, 4)}")
    else:
        raise _unusable(name, array.dtype)
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def _dense(name: str, A: Tensor) -> Tensor:
    if A.layout != torch.strided or A.is_quantized or A.is_meta:
        raise InputError(f"{name} is no dense tensor")
    if A.dtype not in DTYPES and (A.is_complex() or (A.is_floating_point() and A.dtype not in HALF)):
        raise _unusable(name, A.dtype)
    dtype = A.dtype if A.dtype in DTYPES else torch.float32 if A.dtype in HALF else torch.float64
    return A.detach().to(dtype).resolve_conj().clone(memory_format=torch.contiguous_format)


def _unusable(name: str, dtype: object) -> InputError:
    return InputError(f"expected real or complex numbers of at most double precision; {name} is of {dtype}")


def _require_size(shape: tuple[int, ...]) -> None:
    if prod(shape) > LIMIT:
        raise InputError(f"{'×'.join(map(str, shape))} is more than the {LIMIT} elements allowed")


def _read_npy(path: Path) -> Mapping[str, object]:
    try:
        return {"": np.load(path, allow_pickle=False, mmap_mode="r")}  # mapped, it is seen to be shorter than its shape
    except (OSError, MemoryError):
        raise
    except Exception as error:  # NumPy has many types of them for a damaged file
        raise _damaged(".npy", error) from error


def _read_archive(path: Path) -> Mapping[str, object]:
    """`.npz` or `.pt`, both of which are zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        for member in members:
            if member.file_size > 16 * LIMIT:
                raise InputError(f"{member.filename} has {member.file_size} bytes, more than allowed")
        if any(Path(member.filename).name == "data.pkl" for member in members):
            return _read_torch(path)
        with np.load(path, allow_pickle=False) as loaded:
            if {"format", "shape"} <= set(loaded.files):
                raise InputError("is a sparse matrix of SciPy: write it with scipy.io.mmwrite, as .mtx, instead")
            return {name: _member(loaded, name) for name in loaded.files}
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib have as many
        raise _damaged(".npz or .pt", error) from error


def _member(loaded: Mapping[str, object], name: str) -> object:
    """An array of an archive, or what is wrong with it."""
    try:
        return loaded[name]
    except MemoryError:
        return InputError(f"{name} does not fit in memory")
    except Exception as error:
        return InputError(f"{name}: {_damaged('.npy', error)}")


def _read_torch(path: Path) -> Mapping[str, object]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError("holds objects of Python, which are not loaded: save tensors only") from error
    if isinstance(loaded, Tensor):
        return {"": loaded}
    entries: Iterable[tuple[object, object]] = ()
    if isinstance(loaded, Mapping):
        entries = loaded.items()
    elif isinstance(loaded, (list, tuple)):
        entries = enumerate(loaded)
    return {str(name): value for name, value in entries}


def _damaged(kind: str, error: Exception) -> InputError:
    reason = str(error) or type(error).__name__
    if "pickle" in reason or "Python objects" in reason:  # and NumPy's advice is to trust the file
        return InputError("holds objects of Python, which are not loaded: save numbers only")
    if "mmap length" in reason:
        return InputError("is cut off: it has fewer bytes than its header declares")
    return InputError(f"is no {kind} file, or a damaged one: {reason}")


def _read_gzip(path: Path) -> Mapping[str, object]:
    try:
        with gzip.open(path) as file:
            content = file.read(4 * LIMIT + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"is no .gz file, or a damaged one: {error}") from error
    if len(content) > 4 * LIMIT:
        raise InputError(f"unpacks to more than the {4 * LIMIT} bytes allowed")
    if _reader(content[:16]) is not _read_matrix_market:
        raise InputError("is a .gz file of something other than a Matrix Market file")
    return _matrix_market(content)


def _read_matrix_market(path: Path) -> Mapping[str, object]:
    return _matrix_market(path.read_bytes())


def _matrix_market(content: bytes) -> Mapping[str, object]:
    """Every entry of the format, https://math.nist.gov/MatrixMarket/formats.html; entries given twice add up."""
    header, *lines = content.decode("utf-8", "replace").splitlines()
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
    return {"": A}


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
