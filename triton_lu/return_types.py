"""The named tuples that `torch.linalg` returns, and the types of their members, which PyTorch does not declare."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:

    class linalg_lu_factor(tuple[Tensor, Tensor]):
        @property
        def LU(self) -> Tensor: ...
        @property
        def pivots(self) -> Tensor: ...

    class linalg_lu_factor_ex(tuple[Tensor, Tensor, Tensor]):
        @property
        def LU(self) -> Tensor: ...
        @property
        def pivots(self) -> Tensor: ...
        @property
        def info(self) -> Tensor: ...

    class linalg_lu(tuple[Tensor, Tensor, Tensor]):
        @property
        def P(self) -> Tensor: ...
        @property
        def L(self) -> Tensor: ...
        @property
        def U(self) -> Tensor: ...

    class linalg_slogdet(tuple[Tensor, Tensor]):
        @property
        def sign(self) -> Tensor: ...
        @property
        def logabsdet(self) -> Tensor: ...

    class linalg_solve_ex(tuple[Tensor, Tensor]):
        @property
        def result(self) -> Tensor: ...
        @property
        def info(self) -> Tensor: ...

    class linalg_inv_ex(tuple[Tensor, Tensor]):
        @property
        def inverse(self) -> Tensor: ...
        @property
        def info(self) -> Tensor: ...

else:
    from torch.return_types import linalg_inv_ex as linalg_inv_ex
    from torch.return_types import linalg_lu as linalg_lu
    from torch.return_types import linalg_lu_factor as linalg_lu_factor
    from torch.return_types import linalg_lu_factor_ex as linalg_lu_factor_ex
    from torch.return_types import linalg_slogdet as linalg_slogdet
    from torch.return_types import linalg_solve_ex as linalg_solve_ex
