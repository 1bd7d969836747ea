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

else:
    from torch.return_types import linalg_lu as linalg_lu
    from torch.return_types import linalg_lu_factor as linalg_lu_factor
    from torch.return_types import linalg_lu_factor_ex as linalg_lu_factor_ex
