"""The operators on their kernels as compiled, with the plan's constants: a table of cases.

It is a covering design: `test_table_covers` says what every regime and dtype meets, instead of every combination.
"""

from dataclasses import dataclass

import ptxrun
import pytest
import torch

import triton_lu
from tests.support.emulated import FAULTS, SCHEDULES, TARGETS, assert_is_factorization
from tests.support.layouts import by_column, by_row
from tests.support.matrices import ZOO, any_pivots, random_pivots
from triton_lu import plan, reference

# X is the argument G or E of a map, the Y of `curvature` (whose D is called LU), or the matrix A to be factored.
TABLE = """
    operator  dtype        m    n  batch  LU        X         target

    vjp       float32      2    2      1  column    row       sm_80
    jvp       float32      1    2     65  row       column    sm_90
    vjp       float32      3    4     65  expanded  row       sm_90
    jvp       float32      4    4      1  column    expanded  sm_80
    vjp       float32      8    8     33  row       column    sm_90
    jvp       float32      7    5     33  column    row       sm_80
    vjp       float32     13    9     17  column    expanded  sm_80
    jvp       float32     16   16     17  expanded  row       sm_90

    vjp       float64      2    1     65  column    column    sm_90
    jvp       float64      2    2    129  row       row       sm_80
    vjp       float64      4    4     33  column    row       sm_80
    jvp       float64      4    3      1  row       column    sm_90
    vjp       float64      5    8     17  expanded  expanded  sm_80
    jvp       float64      8    8      1  column    row       sm_90
    vjp       float64     16   16      3  row       column    sm_90
    jvp       float64     11   16      5  expanded  expanded  sm_80

    vjp       complex64    1    1      1  column    row       sm_90
    jvp       complex64    2    2     65  expanded  column    sm_80
    vjp       complex64    4    4     65  row       expanded  sm_80
    jvp       complex64    3    4      1  column    row       sm_90
    vjp       complex64    8    7     17  expanded  column    sm_90
    jvp       complex64    8    8     33  row       expanded  sm_80
    vjp       complex64    9   14      3  column    row       sm_80
    jvp       complex64   16   16      3  row       column    sm_90

    vjp       complex128   2    2     65  row       column    sm_80
    jvp       complex128   1    1     65  column    row       sm_90
    vjp       complex128   4    2      1  column    expanded  sm_90
    jvp       complex128   4    4     33  expanded  column    sm_80
    vjp       complex128   8    8      5  column    row       sm_90
    jvp       complex128   7    8      9  row       expanded  sm_80
    vjp       complex128  16   16      5  expanded  column    sm_80
    jvp       complex128  15   10      3  column    row       sm_90

    vjp       float32     20   31      1  row       column    sm_90
    jvp       float32     32   32      2  column    row       sm_90
    vjp       float32     64   64      1  column    row       sm_90
    jvp       float32     64   64      1  column    row       sm_90
    vjp       float32     70   33      2  expanded  expanded  sm_80
    jvp       float32     33   66      1  row       column    sm_80

    jvp       float64     64   64      1  column    row       sm_90
    vjp       float64     33   66      1  row       column    sm_80
    jvp       float64     70   33      3  expanded  expanded  sm_80

    vjp       complex64   64   64      1  column    row       sm_90
    vjp       complex64   70   33      2  expanded  expanded  sm_80
    jvp       complex64   48   48      2  column    row       sm_90

    jvp       complex128  32   32      1  column    row       sm_90
    vjp       complex128  17   66      1  row       column    sm_80
    jvp       complex128  66   33      2  expanded  expanded  sm_80

    vjp       float32    130  130      1  column    row       sm_80
    jvp       float32    133   70      2  row       column    sm_90
    vjp       float32     20  133      2  expanded  expanded  sm_90
    jvp       float32     64  192      1  column    row       sm_80

    vjp       float64    133   70      2  row       column    sm_90
    jvp       float64    130  130      1  column    row       sm_80

    vjp       complex64   40  133      2  expanded  row       sm_90
    jvp       complex64  130  130      1  column    column    sm_80

    vjp       complex128 130  130      1  column    row       sm_80
    jvp       complex128  40  133      2  row       column    sm_90

    factor    float32      1    2    129  -         row       sm_90
    factor    float32      4    4      1  -         column    sm_80
    factor    float32      8    5     33  -         expanded  sm_80
    factor    float32     16   16     17  -         row       sm_90
    factor    float32     32   32      9  -         column    sm_90

    factor    float64      2    2      1  -         column    sm_80
    factor    float64      3    4     65  -         row       sm_80
    factor    float64      8    8     33  -         row       sm_90
    factor    float64     16   11     17  -         expanded  sm_90
    factor    float64     32   32      9  -         row       sm_80
    factor    float64     20   31      5  -         column    sm_90

    factor    complex64    2    1    129  -         column    sm_90
    factor    complex64    3    4     65  -         row       sm_80
    factor    complex64    8    8     33  -         expanded  sm_90
    factor    complex64   15   10      1  -         row       sm_80
    factor    complex64   32   32      2  -         row       sm_90
    factor    complex64   18   23      1  -         column    sm_80

    factor    complex128   1    1    129  -         row       sm_80
    factor    complex128   4    4     65  -         expanded  sm_90
    factor    complex128   7    5     33  -         column    sm_80
    factor    complex128  16   16      1  -         row       sm_90
    factor    complex128  32   32      1  -         column    sm_80
    factor    complex128  20   23      2  -         row       sm_90

    curvature float32     2    1     65  expanded  row       sm_80
    curvature float32     4    4      1  column    column    sm_90
    curvature float32     5    8     33  row       expanded  sm_80
    curvature float32    16   16     17  column    row       sm_90
    curvature float32    29   18      3  row       column    sm_90
    curvature float32    64   64      1  column    row       sm_80
    curvature float32    33   70      2  expanded  expanded  sm_80
    curvature float32   130  130      1  column    row       sm_80
    curvature float32    70  133      2  row       column    sm_90
    curvature float32   133   20      2  expanded  expanded  sm_90
    curvature float32    64  192      1  column    row       sm_80

    curvature float64     2    2    129  column    row       sm_90
    curvature float64     3    4      1  row       column    sm_80
    curvature float64     8    7     17  expanded  expanded  sm_90
    curvature float64    16   16      3  column    row       sm_80
    curvature float64    20   31      2  expanded  expanded  sm_80
    curvature float64    70   33      3  row       column    sm_90
    curvature float64   130  130      1  column    row       sm_90
    curvature float64    70  133      2  row       column    sm_80
    curvature float64   133   20      2  expanded  expanded  sm_80
    curvature float64    64  192      1  column    row       sm_90

    curvature complex64   1    2     65  row       column    sm_80
    curvature complex64   4    4      1  column    row       sm_90
    curvature complex64   8    8     33  expanded  row       sm_80
    curvature complex64  16   13      3  column    expanded  sm_90
    curvature complex64  33   70      2  expanded  expanded  sm_80

    curvature complex128  2    2      1  column    row       sm_90
    curvature complex128  4    4     65  row       column    sm_80
    curvature complex128  7    8      9  expanded  expanded  sm_90
    curvature complex128 16   16      3  column    row       sm_80
    curvature complex128 64   64      1  column    row       sm_80
"""
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
REGIMES = ["warp", "tile", "sweep", "factor", "curvature"]


@dataclass(frozen=True)
class Case:
    operator: str
    dtype: torch.dtype
    m: int
    n: int
    batch: int = 1
    LU: str = "column"
    X: str = "row"
    target: str = "sm_80"

    def __post_init__(self):
        expanded_along_the_batch = self.X if self.operator == "factor" else self.LU
        assert expanded_along_the_batch != "expanded" or self.batch > 1

    @classmethod
    def parse(cls, line):
        operator, dtype, m, n, batch, *rest = line.split()
        return cls(operator, getattr(torch, dtype), int(m), int(n), int(batch), *rest)

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([self.operator, dtype, f"{self.batch}x{self.m}x{self.n}", self.LU, self.X, self.target])

    @property
    def plan(self):
        return plan.kernel(self.operator, self.m, self.n, self.dtype, self.batch)

    @property
    def regime(self):
        regimes = {
            plan.Warp: "warp",
            plan.Tile: "tile",
            plan.Sweep: "sweep",
            plan.Factor: "factor",
            plan.Curvature: "curvature",
        }
        return regimes[type(self.plan)]

    @property
    def completed(self):
        """The size to which the kernel completes the matrix, or its blocks."""
        if self.regime == "tile":
            return 16
        largest = max(self.m, self.n)
        return self.plan.block if self.regime in ("sweep", "curvature") else max(2, 1 << (largest - 1).bit_length())

    @property
    def kernel(self):
        """What layouts and target leave open. Of tiles, which compile slowly, the number of warps in float32 only."""
        counts = self.regime != "tile" or self.dtype == torch.float32
        return self.regime, self.completed, self.plan if counts else None

    def features(self):
        yield f"{self.operator} on {self.target}"
        yield "square" if self.m == self.n else "tall" if self.m > self.n else "wide"
        yield "ragged" if self.m % self.completed or self.n % self.completed else "full"
        yield f"LU by {self.LU}"
        yield f"X by {self.X}"
        several = getattr(self.plan, "matrices", 1) > 1  # matrices in a program
        if self.batch == 1:
            yield "alone, with room for others" if several else "alone"
        elif not several:
            yield "one per program"
        elif self.batch > self.plan.matrices and self.batch % self.plan.matrices:
            yield "ends inside a program"


CASES = [Case.parse(line) for line in TABLE.splitlines()[2:] if line]


@pytest.mark.parametrize("regime", REGIMES)
def test_table_covers_every_feature(regime):
    """In every dtype where kernels compile fast; the others in all dtypes together, in each at least each operator."""
    expected = {"square", "tall", "wide", "ragged", "full", "X by row", "X by column", "X by expanded"}
    several = {"factor": ["factor"], "curvature": ["curvature"], "sweep": ["vjp", "jvp"]}
    operators = several.get(regime, ["vjp", "jvp", "curvature"])
    expected |= {f"{name} on {target}" for name in operators for target in TARGETS}
    if regime != "factor":
        expected |= {"LU by row", "LU by column", "LU by expanded"}
    if regime in ("warp", "factor"):
        expected |= {"alone, with room for others", "ends inside a program"}
    else:
        expected |= {"alone", "one per program"}
    cases = [case for case in CASES if case.regime == regime]
    dtypes = DTYPES[:2] if regime == "curvature" else DTYPES  # complex ones are products there
    assert {(case.operator, case.dtype) for case in cases} == {(name, dtype) for name in operators for dtype in dtypes}
    for dtypes in [[dtype] for dtype in DTYPES] if regime in ("warp", "factor") else [DTYPES]:
        assert expected <= {feature for case in cases if case.dtype in dtypes for feature in case.features()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", ["factor", "vjp", "jvp", "curvature"])
def test_table_covers_every_kernel(operator, dtype):
    """Whatever the plan chooses for a size up to those of the last regime; but test_factor_blocks.py has its own."""
    planned = [Case(operator, dtype, n, n) for n in range(1, 130)]
    planned = [case for case in planned if not isinstance(case.plan, plan.FactorBlocks)]
    tested = [case for case in CASES if (case.operator, case.dtype) == (operator, dtype)]
    assert {case.kernel for case in planned if case.plan} == {case.kernel for case in tested}


def arguments(case):
    """Of the operator. Expanded: all matrices are the first one, and all rows of G or E the first row; there is no more
    in memory, so that the emulator sees what is read beyond."""
    make = ZOO["gaussian"].make
    A, X = (torch.stack([make(case.m, case.n, case.dtype, i + s) for i in range(case.batch)]) for s in (0, 1000))
    layouts = {"row": by_row, "column": by_column, "expanded": lambda x: x[:1].clone().expand_as(x)}
    if case.operator == "factor":
        return (layouts[case.X](A),)
    LU, pivots, _ = torch.linalg.lu_factor_ex(A)
    if case.LU == "expanded":
        pivots = layouts["expanded"](pivots)
    layouts_of_X = layouts | {"expanded": lambda x: x[:1, :1].clone().expand_as(x)}
    return layouts[case.LU](LU), pivots, layouts_of_X[case.X](X)


def run(case, args, **options):
    """The results as a tuple, in memory that held NaN and the largest integer before, checked by the emulator."""
    options = {"target": case.target, "explicit_barriers": True} | options
    torch.use_deterministic_algorithms(True)  # fills what is allocated without a value
    try:
        assert torch.empty(1).isnan()
        with ptxrun.device(**options) as reports, triton_lu.backend("triton"):
            results = getattr(torch.ops.triton_lu, case.operator)(*args)
    finally:
        torch.use_deterministic_algorithms(False)
    assert reports
    for report in reports:
        assert not report.errors
        assert not report.warnings
    return results if isinstance(results, tuple) else (results,)


def assert_agrees(case, args, results):
    """A map with its reference, a factorization with LAPACK's."""
    if case.operator == "factor":
        assert_is_factorization(*args, results)
    else:
        error = reference.relative_error(results[0], getattr(reference, case.operator)(*args))
        assert error <= reference.tolerance(case.dtype, max(case.m, case.n))


def check(case, **options):
    """What is asked of a case: no finding and the right result, the same under every schedule of the warps."""
    args = arguments(case)
    expected = None
    for schedule in SCHEDULES:
        results = run(case, args, schedule=schedule, **options)
        assert_agrees(case, args, results)
        expected = expected or results
        assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case):
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        "jvp complex64 7 5 5 column row sm_80",
        "vjp float32 12 17 2 column row sm_90",
        "vjp float32 70 33 2 expanded expanded sm_80",
        "jvp float32 133 70 2 row column sm_90",
        "factor float32 3 4 20 - row sm_80",
        "curvature float64 20 31 2 column row sm_90",
    ],
)
def test_batch_of_two_dimensions(case):
    """Every matrix is there twice, but not in memory: the two dimensions have no common stride."""
    case = Case.parse(case)
    args = arguments(case)
    twice = [x[:, None].expand(case.batch, 2, *x.shape[1:]) for x in args]
    for x, y in zip(run(case, twice), run(case, args), strict=True):
        assert torch.equal(x, y[:, None].expand_as(x))


PLANTED = [
    ("warp_kernel", "vjp float32 13 9 17 column expanded sm_80"),
    ("warp_kernel", "jvp float32 7 5 33 column row sm_80"),
    ("warp_kernel", "curvature float32 5 8 33 row expanded sm_80"),
    ("tile_kernel", "vjp float32 70 33 2 expanded expanded sm_80"),
    ("tile_kernel", "jvp float64 70 33 3 expanded expanded sm_80"),
    ("prepare_kernel", "jvp float32 133 70 2 row column sm_90"),
    ("step_kernel", "jvp float32 133 70 2 row column sm_90"),
    ("factor_kernel", "factor float32 8 5 33 - expanded sm_80"),
    ("tile_kernel", "curvature float32 33 70 2 expanded expanded sm_80"),
    ("curvature_kernel", "curvature float32 70 133 2 row column sm_90"),
]
"""Cases of the table for each kernel and map, ragged, with several warps where the plan has them."""
ONE_WARP = ("prepare_kernel",)  # which needs no barriers


@pytest.mark.parametrize(
    ("kernel", "line", "fault"),
    [(*planted, fault) for planted in PLANTED for fault in FAULTS if planted[0] not in ONE_WARP or "masks" in fault],
)
def test_planted_fault_is_found(kernel, line, fault):
    """The checks above can fail, and do when any kernel is without its barriers or without its masks."""
    edit, finding = FAULTS[fault]
    case = Case.parse(line)
    assert case in CASES
    with pytest.raises(AssertionError, match=finding):
        check(case, edit_ptx=lambda ptx: edit(ptx) if f".entry {kernel}" in ptx else ptx)


@pytest.mark.parametrize(
    "case",
    [
        "slogdet float32 5 5 9 - column sm_80",
        "inverse float64 8 8 3 row - sm_90",
        "inv_ex float32 12 12 2 - row sm_90",
        "lu_solve complex64 4 2 5 column expanded sm_80",
        "solve_ex float64 16 3 2 - row sm_90",
        "solve_ex float32 7 1 9 - expanded sm_80",
    ],
)
def test_systems(case):
    """With m×m matrices and n right-hand sides, X, of which every one is there twice, but not in memory. Tables of
    their kernels are in files of their own."""
    case = Case.parse(case)
    layouts = {"row": by_row, "column": by_column, "expanded": lambda x: x[:, :1].clone().expand_as(x)}
    X = layouts[case.X if case.X != "-" else "row"](torch.randn(case.batch, case.m, case.n, dtype=case.dtype))
    A = X if case.m == case.n else torch.randn(case.batch, case.m, case.m, dtype=case.dtype)
    LU, pivots, _ = torch.linalg.lu_factor_ex(A)
    LU = layouts[case.LU if case.LU != "-" else "column"](LU)
    A, LU, pivots, X = (x[:, None].expand(case.batch, 2, *x.shape[1:]) for x in (A, LU, pivots, X))
    args = {"inverse": (A, LU, pivots), "lu_solve": (LU, pivots, X, True, True), "solve_ex": (A, X, True)}
    args = args.get(case.operator, (A,))
    with triton_lu.backend("aten"):
        expected = getattr(torch.ops.triton_lu, case.operator)(*args)
    expected = expected if isinstance(expected, tuple) else (expected,)
    tolerance = 1e4 * torch.finfo(case.dtype).eps
    for result, exact in zip(run(case, args), expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("batch", "k", "m"), [((2,), 40, 70), ((), 64, 64), ((2, 3), 5, 5)], ids=str)
@pytest.mark.parametrize("draw", [random_pivots, any_pivots])
def test_permutation(batch, k, m, target, draw):
    pivots = draw(*batch, k=k, m=m)
    pivots = pivots.transpose(0, -2) if len(batch) > 1 else pivots  # no common stride
    for schedule in SCHEDULES:
        with (
            ptxrun.device(target=target, schedule=schedule, explicit_barriers=True) as reports,
            triton_lu.backend("triton"),
        ):
            order = triton_lu.permutation(pivots, m)
        assert torch.equal(order, reference.row_order(pivots, m))
        assert not any(report.errors or report.warnings for report in reports)
        assert len(reports) == 1
