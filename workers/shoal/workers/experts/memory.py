"""What memory is left on a device, for whoever is about to take much of it."""

from __future__ import annotations

import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken without swapping, or on a GPU at all."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    import psutil  # here, because a machine that only measures its GPU has none

    return int(psutil.virtual_memory().available)
