"""What can go wrong with the machine during a step, told apart.

Rules.
- Too little memory is not an error of the round: the caller cuts the micro-batch (`engine`).
- A failed accelerator is: the attempt ends with a typed error, and nothing of it was released.

    >>> is_out_of_memory(MemoryError())
    True
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wardround_common.errors import TrainingError


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is torch's or Python's way to say so; on the CPU torch raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn the failure of an accelerator into a typed error.

    Raises:
        TrainingError: a kernel failed or the device is gone.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise TrainingError(
            "device-failed",
            f"the accelerator failed during training: {str(error).splitlines()[0][:200]}",
            next_step="check the device (nvidia-smi) and start the client again: the round goes on with the same draw",
        ) from None
