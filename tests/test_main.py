"""The command line: what it prints, what it refuses, and how it exits."""

import gzip
import os
import re
import signal
import subprocess
import sys
from io import TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from torch.autograd import grad

import triton_lu
from triton_lu import aten_backend, reference
from triton_lu.__main__ import main
from triton_lu.bench.timing import Timing, interleaved, peak_bytes, wall_clock
from triton_lu.cli import demo, doctor, matrixfile, served_by
from triton_lu.command import InputError
from triton_lu.validation import DTYPES

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
ENVIRONMENT = {**os.environ, "COLUMNS": "110", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}


@pytest.fixture(autouse=True)
def _one_thread_and_wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(*args):
    return subprocess.Popen(
        [sys.executable, *args],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells have jobs in the background ignore it
    )


def read(path):
    """The matrices of a file, all of whose arrays are."""
    return matrixfile.read(path, pytest.fail)


def triton_lu_command(*args):
    """(exit code, stdout, stderr) of `python -m triton_lu`."""
    process = start("-m", "triton_lu", *map(str, args))
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def matrix_market(path, header, *lines):
    path.write_text("\n".join([f"%%MatrixMarket matrix {header}", *lines]) + "\n")
    return path


def convection_diffusion(size, x_wind=0.4, y_wind=-0.2):
    """The five-point discretization of -Δu + w·∇u on a square of size × size points."""
    east, one = np.eye(size, k=1), np.eye(size)
    x = 2 * one - (1 - x_wind) * east - (1 + x_wind) * east.T
    y = 2 * one - (1 - y_wind) * east - (1 + y_wind) * east.T
    return np.kron(one, x) + np.kron(y, one)


def batch_with_faults():
    """Six Gaussian matrices; [0, 2] has a column of zeros, [1, 1] a NaN."""
    A = np.random.default_rng(0).standard_normal((2, 3, 9, 9))
    A[0, 2, :, 4] = 0
    A[1, 1, 3, 3] = np.nan
    return A


# The program as users start it


def test_demo_of_a_matrix_market_file():
    code, out, err = triton_lu_command("demo", DATA / "convection_diffusion.mtx")
    assert (code, err) == (0, "")
    assert "convection_diffusion" in out
    assert "100×100 float64" in out
    assert "vs PyTorch" in out
    assert "ATen sweep" in out


def test_demo_reports_singular_matrices_and_nan_without_failing():
    code, out, err = triton_lu_command("demo", DATA / "faults.npy", "--dtype", "complex64")
    assert (code, err) == (0, "")
    assert "2×3×9×9 complex64" in out
    assert "[0, 2]: singular, U[5, 5] = 0" in out
    assert "[1, 1]: not finite" in out
    assert "nan" not in out.replace("[1, 1]: not finite", "")


def test_doctor_finds_nothing():
    code, out, err = triton_lu_command("doctor")
    assert (code, err) == (0, "")
    assert "FAIL" not in out
    assert out.count(" ok ") == 2 * 4 * len(doctor.devices())
    assert f"all {5 * 2 * 4 * len(doctor.devices())} checks passed" in out
    assert "NumPy," not in out
    for expected in (triton_lu.__version__, torch.__version__, "cpu", "threads: 1", *map(str, DTYPES)):
        assert expected.removeprefix("torch.") in out


def test_reports_fit_in_60_columns(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "COLUMNS", "60")
    for command in (["doctor"], ["demo", DATA / "faults.npy"]):
        code, out, err = triton_lu_command(*command)
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 60
        assert "…" not in out


def test_bad_input_is_one_line_and_exit_code_2():
    code, out, err = triton_lu_command("demo", "no/such/file.npy")
    assert (code, out) == (2, "")
    assert err == "triton_lu: error: no/such/file.npy: No such file or directory\n"


@pytest.mark.parametrize("command", [["demo", DATA / "faults.npy"], ["doctor"]])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "triton_lu", *map(str, command)],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (2, "triton_lu: error: No space left on device\n")


def test_an_interrupt_is_exit_code_130_without_traceback():
    with start("-m", "triton_lu", "demo") as process:
        assert "triton_lu" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_importing_the_package_stays_light():
    script = "import torch, sys; before = set(sys.modules); import triton_lu; print(*sorted(set(sys.modules) - before))"
    with start("-c", script) as process:
        imported = process.communicate(timeout=60)[0].split()
    assert "triton_lu.ops" in imported
    assert not {"rich", "argparse", "triton_lu.cli", "triton_lu.bench.timing", "torch.utils.cpp_extension"} & set(
        imported
    )


# Usage


@pytest.mark.parametrize(("argv", "complaint"), [([], "required: COMMAND"), (["dmeo"], "invalid choice: 'dmeo'")])
def test_usage_without_a_command(argv, complaint, capsys):
    with pytest.raises(SystemExit) as exit:
        main(argv)
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert err.startswith("python -m triton_lu: error: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"triton_lu {triton_lu.__version__}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there(capsys):
    assert main(["demo", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "triton_lu: error: there is no CUDA device\n"


def test_complex_matrices_are_not_made_real(tmp_path, capsys):
    np.save(tmp_path / "c.npy", np.eye(3) * 1j)
    assert main(["demo", str(tmp_path / "c.npy"), "--dtype", "float32"]) == 2
    assert capsys.readouterr().err == "triton_lu: error: c is complex: it has no float32\n"


# The demo


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 9), (70, 70)])
def test_row(dtype, shape):
    A = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    matrices, residual, error, time, memory, served = demo.row("name", A)
    error, judge = error.split("\nvs ")
    tolerance = reference.tolerance(dtype, max(shape))
    assert matrices == f"name\n{'×'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    assert 0 < float(residual) < tolerance
    assert 0 <= float(error) < tolerance  # in double precision it may be PyTorch's gradient to the bit
    assert judge == ("PyTorch" if dtype in (torch.float64, torch.complex128) else "double")
    assert re.fullmatch(r"[\d.]+ ms\n[\d.]+× (faster|slower)", time)
    assert re.fullmatch(r"[\d.]+ k?i?[Bb]y?t?e?s?\n[\d.]+× (less|more)", memory)
    assert served.startswith("NumPy\none block" if shape == (7, 5) else "ATen sweep\nblocks ")


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_shows_a_wrong_gradient(dtype, monkeypatch):
    vjp = aten_backend.vjp
    monkeypatch.setattr(aten_backend, "vjp", lambda *args: 3 * vjp(*args))
    A = torch.randn(4, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert demo.row("name", A)[2].startswith("2.0e+00")


def test_row_counts_what_it_does_not_list():
    A = torch.zeros(5, 2, 2)
    matrices, residual, error, *_ = demo.row("zeros", A)
    assert matrices.splitlines()[2:] == [f"[{i}]: singular, U[1, 1] = 0" for i in range(3)] + ["and 2 more of 5"]
    assert (residual, error) == ("–", "–")


def test_served_by_says_which_plan_serves():
    with triton_lu.backend("triton"):
        assert served_by(torch.empty(5, 8, 8)) == "Triton kernel, warp"
    with triton_lu.backend("aten"):
        assert served_by(torch.empty(5, 8, 8)) == "ATen sweep, blocks 8"
        assert served_by(torch.empty(1000, 8, 8)) == "NumPy, column by column"
        assert served_by(torch.empty(8, 8)) == "NumPy, one block"
        assert served_by(torch.empty(512, 512)) == "ATen sweep, blocks 96"


def test_well_known_matrices_are_regular():
    for name, A in demo.well_known():
        LU, pivots, infos = triton_lu.lu(A, get_infos=True)
        assert not infos.any(), name
        assert reference.residual(A, LU, pivots) < reference.tolerance(A.dtype, max(A.shape[-2:])), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 6), (3, 8, 5), (2, 2, 5, 8)])
def test_the_gradient_that_others_are_judged_by(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    A, G = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
    A = reference.double(A).requires_grad_()
    LU, pivots, _ = torch.linalg.lu_factor_ex(A)
    exact = reference.vjp(LU.detach(), pivots, G)
    assert reference.relative_error(grad(LU, A, reference.double(G))[0], exact) < 1e-12


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_relative_error_does_not_depend_on_the_size_of_the_numbers(size):
    exact = torch.ones(2, 2, dtype=torch.float64)
    assert reference.relative_error(size * (exact + 1e-3), size * exact) == pytest.approx(1e-3)


def test_relative_error_is_that_of_the_worst_and_sees_nan():
    exact = torch.ones(3, 2, 2)
    x = exact.clone()
    x[1] *= 1.5
    assert reference.relative_error(x, exact) == 0.5
    x[2, 0, 0] = torch.nan
    assert np.isnan(reference.relative_error(x, exact))


# The doctor


def scaled(function):
    return lambda *args: 1.01 * function(*args)


def without_infos(factor):
    def wrong(A, pivot):
        LU, pivots, infos = factor(A, pivot)
        return LU, pivots, torch.zeros_like(infos)

    return wrong


def with_wrong_LU(factor):
    def wrong(A, pivot):
        LU, pivots, infos = factor(A, pivot)
        return LU.mul_(1.01), pivots, infos

    return wrong


def leaking(function):
    """One matrix's NaN reaches all others."""

    def wrong(*args):
        result = function(*args)
        return torch.full_like(result, torch.nan) if result.isnan().any() else result

    return wrong


def raising(function):
    def wrong(*args):
        raise RuntimeError("planted")

    return wrong


@pytest.mark.parametrize(
    ("operator", "planted", "failing"),
    [
        ("vjp", scaled, {"gradient", "adjoint"}),
        ("jvp", scaled, {"adjoint"}),
        ("factor", with_wrong_LU, {"residual"}),
        ("factor", without_infos, {"singular"}),
        ("vjp", leaking, {"singular", "NaN"}),
        ("vjp", torch.nan_to_num, {"NaN"}),
        ("vjp", raising, {"gradient", "adjoint", "singular", "NaN"}),
    ],
)
def test_doctor_notices(operator, planted, failing, monkeypatch, capsys):
    right = getattr(aten_backend, operator)
    wrong = (lambda *args: planted(right(*args))) if planted is torch.nan_to_num else planted(right)
    monkeypatch.setattr(aten_backend, operator, wrong)
    monkeypatch.setattr(doctor, "DTYPES", (torch.float32,))
    monkeypatch.setattr(doctor, "devices", lambda: [torch.device("cpu")])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    reported = {line.split(": ")[1] for line in out.splitlines() if line.startswith("FAIL cpu, float32")}
    assert reported >= failing
    assert "of 10 checks failed" in out
    if failing == {"residual"}:
        assert "singular" not in reported
    if planted is raising:
        assert "planted" in out


# Matrix files


def test_the_matrices_of_the_data_folder():
    (A,) = read(DATA / "convection_diffusion.mtx").values()
    torch.testing.assert_close(A, torch.from_numpy(convection_diffusion(10)), rtol=0, atol=1e-15)
    (A,) = read(DATA / "faults.npy").values()
    torch.testing.assert_close(A, torch.from_numpy(batch_with_faults()), rtol=0, atol=0, equal_nan=True)


FIELDS = {
    "real": ("1.5", "-2", "3e-2", ".25"),
    "integer": ("1", "-2", "3", "4"),
    "complex": ("1 2", "-3 4.5", "0 1", "7 0"),
    "pattern": ("", "", "", ""),
}
POSITIONS = {
    "general": ("1 1", "2 3", "3 1", "3 2"),
    "symmetric": ("1 1", "2 1", "3 1", "3 3"),
    "hermitian": ("2 1", "3 1", "3 2", "2 1"),
    "skew-symmetric": ("2 1", "3 1", "3 2", "3 2"),
}


@pytest.mark.parametrize("symmetry", POSITIONS)
@pytest.mark.parametrize("field", FIELDS)
def test_coordinates_as_scipy_reads_them(field, symmetry, tmp_path):
    entries = [" ".join(pair) for pair in zip(POSITIONS[symmetry], FIELDS[field], strict=True)]
    header = f"coordinate {field} {symmetry}"
    path = matrix_market(tmp_path / "a.mtx", header, "% a comment", "", "3 3 4", *entries[:2], "", *entries[2:])
    expected = scipy.io.mmread(path).toarray()
    (A,) = read(path).values()
    assert A.dtype == (torch.complex128 if field == "complex" else torch.float64)
    assert A.tolist() == expected.tolist()


@pytest.mark.parametrize("symmetry", POSITIONS)
@pytest.mark.parametrize("field", ["real", "integer", "complex"])
def test_arrays_as_scipy_reads_them(field, symmetry, tmp_path):
    m, count = {"general": (4, 12), "skew-symmetric": (3, 3)}.get(symmetry, (3, 6))
    numbers = [f"{i + 1} {i % 3}" if field == "complex" else str(i + 1) for i in range(count)]
    path = matrix_market(tmp_path / "a.mtx", f"array {field} {symmetry}", f"{m} 3", *numbers)
    (A,) = read(path).values()
    assert A.tolist() == scipy.io.mmread(path).tolist()


@pytest.mark.parametrize(
    ("header", "lines", "complaint"),
    [
        ("coordinate quaternion general", ["2 2 1", "1 1 1"], "expected the header"),
        ("array pattern general", ["2 2"], "expected the header"),
        ("coordinate real general", [], "line of sizes"),
        ("coordinate real general", ["2 2"], "line of sizes"),
        ("coordinate real general", ["2 -2 1", "1 1 1"], "line of sizes"),
        ("coordinate real general", ["1000000 1000000 1", "1 1 1"], "more than the"),
        ("array real general", [f"{10**30} 1", "1"], "more than the"),
        ("coordinate real general", ["2 2 100000000000", "1 1 1"], "declares 100000000000 entries"),
        ("array real general", ["16000 16000", "1"], "declares 256000000 entries"),
        ("coordinate real general", ["2 2 1", "1 1 1", "2 2 2"], "declares 1 entries"),
        ("coordinate real general", ["2 2 1", "1 1 one"], "could not convert"),
        ("coordinate real general", ["2 2 1", "3 1 1"], "at 3, 1: not in a 2×2"),
        ("coordinate real general", ["2 2 2", "1 1 1", "1 0 1"], "entry 2 is at 1, 0"),
        ("coordinate real general", ["2 2 1", "1.5 1 1"], "at 1.5, 1"),
        ("coordinate real general", ["2 2 1", "nan 1 1"], "at nan, 1"),
        ("coordinate real symmetric", ["2 3 1", "1 1 1"], "must be square"),
        ("coordinate real symmetric", ["2 2 1", "1 2 1"], "lower triangle"),
        ("coordinate real skew-symmetric", ["2 2 1", "1 1 1"], "lower triangle"),
        ("coordinate real general", ["0 0 0"], "with elements"),
    ],
)
def test_malformed_matrix_market(header, lines, complaint, tmp_path, monkeypatch, capsys):
    def zeros(shape, **_):
        assert np.prod(shape) < 100, "allocated before it was checked"
        return np.empty(shape, **_)

    monkeypatch.setattr(np, "zeros", zeros)
    path = matrix_market(tmp_path / "a.mtx", header, *lines)
    assert main(["demo", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"triton_lu: error: {path}: ")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float16", torch.float32),
        ("float32", torch.float32),
        (">f8", torch.float64),
        ("complex64", torch.complex64),
        ("complex128", torch.complex128),
        ("int8", torch.float64),
        ("uint64", torch.float64),
        ("bool", torch.float64),
    ],
)
def test_dtypes_of_numpy_files(given, expected, tmp_path):
    array = np.asfortranarray(np.arange(12).reshape(3, 4) % 2).astype(given)
    np.save(tmp_path / "a.npy", array)
    A = read(tmp_path / "a.npy")["a"]
    assert A.dtype == expected
    assert A.tolist() == array.tolist()


def test_every_array_of_an_npz_is_a_problem(tmp_path, capsys):
    np.savez_compressed(tmp_path / "a.npz", first=np.eye(3), second=np.ones((2, 4, 3), np.float32))
    assert {name: A.shape for name, A in read(tmp_path / "a.npz").items()} == {"first": (3, 3), "second": (2, 4, 3)}
    assert main(["demo", str(tmp_path / "a.npz")]) == 0
    out = capsys.readouterr().out
    assert "first" in out
    assert "second" in out


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.ones(3), "a has shape (3,)"),
        (np.float64(1), "a has shape ()"),
        (np.ones((0, 3, 3)), "a has shape (0, 3, 3)"),
        (np.array([[1, "x"], [None, 2]], dtype=object), "object"),
        (np.array([["a", "b"]]), "a is of <U1"),
        (np.ones((2, 2), np.longdouble), "a is of"),
        (np.zeros((2, 2), "datetime64[s]"), "a is of datetime64"),
        (np.zeros((2, 2), [("x", "f8")]), "a is of"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_not_matrices(suffix, array, complaint, tmp_path):
    path = tmp_path / f"a{suffix}"
    np.save(path, array, allow_pickle=True) if suffix == ".npy" else np.savez(path, a=array, allow_pickle=True)
    with pytest.raises(InputError) as error:
        matrixfile.read(path, print)
    assert complaint.lower() in str(error.value).lower()


def test_tensors_of_a_pt_file(tmp_path):
    path = tmp_path / "a.pt"
    A = torch.randn(2, 3, 3)
    torch.save(A.mT.requires_grad_(), path)
    assert torch.equal(read(path)["a"], A.mT)
    given = {"half": A.half(), "bf16": A.bfloat16(), "whole": A.long(), "complex": A.to(torch.complex128).conj()}
    torch.save(given, path)
    loaded = read(path)
    assert {name: x.dtype for name, x in loaded.items()} == {
        "half": torch.float32,
        "bf16": torch.float32,
        "whole": torch.float64,
        "complex": torch.complex128,
    }
    for name, x in loaded.items():
        assert x.tolist() == given[name].tolist()
        assert x.is_contiguous()
        assert not x.requires_grad
    torch.save([A, A[0]], path)
    assert {name: tuple(x.shape) for name, x in read(path).items()} == {"0": (2, 3, 3), "1": (3, 3)}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (torch.eye(3).to_sparse(), "a is no dense tensor"),
        (torch.empty(3, 3, device="meta"), "a is no dense tensor"),
        (torch.nested.nested_tensor([torch.eye(2), torch.eye(3)]), "a is no dense tensor"),
        (torch.zeros(1).expand(2**20, 2**20), "is more than the"),
        (torch.ones(3), "a has shape (3,)"),
        (torch.eye(3).to(torch.float8_e5m2), "a is of torch.float8_e5m2"),
        ({"a": "text"}, "a is no array"),
        ("text", "holds no array"),
        (Path("a"), "objects of Python"),
    ],
)
def test_what_else_a_pt_file_may_hold(content, complaint, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=re.escape(complaint)):
        read(path)


def test_unusable_arrays_are_left_out_and_named(tmp_path, capsys):
    path = tmp_path / "a.npz"
    np.savez(path, vector=np.ones(3), text=np.array([["x"]]), objects=np.array([[None]]), matrix=np.eye(3))
    assert main(["demo", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"left out: {path}: expected a matrix or a batch of matrices with elements; vector has shape (3,)" in out
    assert f"left out: {path}: expected real or complex numbers of at most double precision; text is of <U1" in out
    assert f"left out: {path}: objects: holds objects of Python, which are not loaded" in out
    assert "3×3 float64" in out


def test_several_files_packed_ones_and_standard_input(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "first.npy", np.eye(3))
    scipy.io.mmwrite(tmp_path / "second.mtx", np.eye(4))
    packed = tmp_path / "second.mtx.gz"
    packed.write_bytes(gzip.compress((tmp_path / "second.mtx").read_bytes()))
    with (tmp_path / "first.npy").open("rb") as file:
        monkeypatch.setattr("sys.stdin", TextIOWrapper(file))
        assert main(["demo", str(tmp_path / "first.npy"), str(packed), "-"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(name in out for name in ("first", "second", "standard input", "3×3 float64", "4×4 float64"))


def test_what_a_user_gives_by_mistake(tmp_path):
    def complaint(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            read(tmp_path / name)
        return str(error.value)

    np.save(tmp_path / "a.npy", np.eye(9))
    whole = (tmp_path / "a.npy").read_bytes()
    assert complaint("cut.npy", whole[:-1]).endswith("is cut off: it has fewer bytes than its header declares")
    assert "is no .npy file, or a damaged one: " in complaint("cut.npy", whole[:20])
    expected = "expected a file of .npy, .npz, .pt, .mtx or .mtx.gz format; it begins with '1.0 2.0\\n3.0 4.0\\n'"
    assert complaint("text.npy", b"1.0 2.0\n3.0 4.0\n").endswith(expected)
    assert complaint("empty.npy", b"").endswith("it is empty")
    assert complaint("other.gz", gzip.compress(whole)).endswith("something other than a Matrix Market file")
    scipy.sparse.save_npz(tmp_path / "sparse.npz", scipy.sparse.eye_array(3, format="csr"))
    message = complaint("s.npz", (tmp_path / "sparse.npz").read_bytes())
    assert message.endswith("is a sparse matrix of SciPy: write it with scipy.io.mmwrite, as .mtx, instead")


def test_a_packed_file_that_unpacks_to_more_than_allowed(tmp_path, monkeypatch):
    path = tmp_path / "a.mtx.gz"
    path.write_bytes(gzip.compress(b"%%MatrixMarket matrix array real general\n" + b" " * 1000))
    monkeypatch.setattr(matrixfile, "LIMIT", 100)
    with pytest.raises(InputError, match="unpacks to more than the 400 bytes allowed"):
        read(path)


def test_sizes_above_the_limit(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    np.savez_compressed(tmp_path / "a.npz", a=np.ones((10, 10)))
    monkeypatch.setattr(matrixfile, "LIMIT", 11)
    with pytest.raises(InputError, match="3×4 is more than the 11 elements"):
        read(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"a\.npy has 928 bytes"):
        read(tmp_path / "a.npz")


def test_a_numpy_file_that_declares_more_than_it_holds(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (2**28, 2**28)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.txt", "a", "folder.npy", "empty.npy", "empty.mtx", "none.npz"])
def test_files_of_no_use(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "folder.npy":
        path.mkdir()
    elif name == "none.npz":
        np.savez(path)
    else:
        path.touch()
    assert main(["demo", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"triton_lu: error: {path}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mtx", ".mtx.gz", ".pt"])
def test_damaged_files_are_read_or_refused(suffix, tmp_path):
    """Whatever is cut off or overwritten: matrices or an InputError, nothing else."""
    whole, damaged = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    A = np.arange(20.0).reshape(4, 5)
    if suffix == ".pt":
        torch.save({"A": torch.from_numpy(A)}, whole)
    elif ".mtx" in suffix:
        scipy.io.mmwrite(tmp_path / "whole.mtx", A)
        if suffix == ".mtx.gz":
            whole.write_bytes(gzip.compress((tmp_path / "whole.mtx").read_bytes()))
    else:
        np.save(whole, A) if suffix == ".npy" else np.savez_compressed(whole, A=A)
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        bad = bytearray(content)
        if trial % 3:
            for position in rng.integers(len(bad), size=trial % 3):
                bad[position] = rng.integers(256)
        else:
            del bad[rng.integers(len(bad)) :]
        damaged.write_bytes(bad)
        try:
            matrixfile.read(damaged, lambda line: None)
        except InputError:
            refused += 1
    assert refused > 100


# Measuring


def test_peak_bytes_is_exact():
    def function():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first
        third = torch.empty(300, dtype=torch.uint8)
        return second, third

    assert peak_bytes(function) == 1500
    assert peak_bytes(lambda: torch.empty(700, dtype=torch.uint8)) == 700
    assert peak_bytes(lambda: None) == 0


def test_peak_bytes_of_a_backward():
    A = torch.randn(4, 50, 50, requires_grad=True)
    square = A @ A
    products = peak_bytes(lambda: grad(square, A, A.detach(), retain_graph=True)) / (4 * A.numel())
    assert products in (2, 3)  # and their sum in the place of one of them or beside both


def test_functions_are_timed_in_turn():
    calls = []
    clocks = {name: wall_clock(lambda name=name: calls.append(name), round_seconds=0) for name in "ab"}
    timings = interleaved(clocks, rounds=4)
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 4, "b": 4}
    assert "".join(calls).endswith("abba" * 2)
    limited = interleaved(clocks, rounds=9, limit_seconds=0)
    assert [len(timing.seconds) for timing in limited.values()] == [3, 3]


def test_ratio_pairs_the_rounds():
    slow, fast = Timing((2.0, 20.0, 200.0, 3.0)), Timing((1.0, 10.0, 100.0, 30.0))
    assert slow.ratio(fast) == 2.0
    assert slow.median == 11.5
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)).percentile(20) == 2.0
