"""Rows of all processes of a distributed training, for losses that compare samples with each other."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rows_of_all_processes(rows: Tensor) -> Tensor:
    """Put the rows of all processes behind each other, in the order of the processes.

    Every process must call it, and must compute the same of what it returns. The gradient reaches the rows of this
    process alone, times the number of processes: averaged over these, as distributed training does, gradients of the
    parameters are those of one process that has all rows.

    Args:
        rows: Of this process; others may have more or fewer. *Shape:* `(num_rows, width)`

    Returns:
        *Shape:* `(num_rows of all processes, width)`; `rows` itself if there is one process.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    num_processes, rank = distributed.get_world_size(), distributed.get_rank()
    if num_processes == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(num_processes)]
    distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in range(num_processes)]
    distributed.all_gather(gathered, padded)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    parts[rank] = rows.detach() + num_processes * (rows - rows.detach())
    return torch.cat(parts)


__all__ = ["rows_of_all_processes"]
