"""Which devices the Triton kernels run on."""

from functools import cache

import torch

TRITON = (3, 6)  # the oldest release that they are checked with
CAPABILITY = (8, 0)  # the oldest that they are compiled and checked for; Triton itself takes no older ones


@cache
def obstacle(device: torch.device) -> str | None:
    """What keeps the kernels from running on that device, in a few words; None where nothing does."""
    try:
        import triton

        from triton_lu import triton_backend  # noqa: F401  all that a launch needs
    except ModuleNotFoundError as error:
        return f"no module {error.name}"
    except Exception as error:  # whatever is wrong with an installation: ATen does without
        return f"Triton cannot be imported: {error}"
    if tuple(map(int, triton.__version__.split(".")[:2])) < TRITON:
        return f"Triton {triton.__version__} is older than {TRITON[0]}.{TRITON[1]}"
    if device.type == "cpu":  # Triton's interpreter, if at all
        return None
    if torch.version.hip:
        return "the GPU is not NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return "compute capability {}.{} is below {}.{}".format(*capability, *CAPABILITY)
    return None


def require_kernels(device: torch.device) -> None:
    """Raises RuntimeError where the kernels do not run."""
    if reason := obstacle(device):
        raise RuntimeError(
            f"there are no Triton kernels for {device}: {reason}; use `triton_lu.backend('auto')` or 'aten'"
        )
