"""Ranks: NCCL becomes gloo, with the collectives and reductions that gloo lacks."""

import atexit
import ctypes
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .replacing import put, wrap

BACKEND = "gloo"
LAST_WORDS_S = 0.2  # at the end of a rank, for gloo's threads to release their last tensors


def lead() -> None:
    """Change torch.distributed, where this build of torch has it."""
    if not dist.is_available():
        return
    wrap(dist, "init_process_group", _start)
    wrap(dist, "new_group", _new_group)
    wrap(dist, "barrier", _barrier)
    wrap(dist, "all_reduce", _all_reduce)
    wrap(dist, "reduce", _reduce)
    put(
        dist,
        all_gather_into_tensor=_all_gather_into_tensor,
        reduce_scatter_tensor=_reduce_scatter_tensor,
        reduce_scatter=_reduce_scatter,
        is_nccl_available=_yes,
    )
    wrap(DistributedDataParallel, "__init__", _parallel)


def _yes() -> bool:
    return True


def _start(original, backend=None, *args, **kwargs):
    kwargs.pop("device_id", None)
    original(BACKEND, *args, **kwargs)
    _keep_forever(dist.group.WORLD)
    atexit.register(time.sleep, LAST_WORDS_S)


def _new_group(original, ranks=None, timeout=None, backend=None, *args, **kwargs):
    kwargs.pop("device_id", None)
    group = original(ranks, timeout, BACKEND, *args, **kwargs)
    _keep_forever(group)
    return group


def _keep_forever(group) -> None:
    """Never destroy a group: the end of the process is its end.

    Its destructor waits for gloo's threads while it holds Python's lock. A thread that still has
    to release a tensor waits for that lock, and the rank never leaves."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _barrier(original, group=None, async_op=False, device_ids=None):
    return original(group, async_op)


def _parallel(original, module, *args, **kwargs):
    """DistributedDataParallel on the CPU takes no `device_ids` and no `output_device`.

    A small model may leave parameters without a gradient that the record's own size uses, in one
    step and not in the next: no graph is static."""
    for name in ("device_ids", "output_device"):
        kwargs.pop(name, None)
    kwargs["find_unused_parameters"] = True
    kwargs["static_graph"] = False
    return original(module, *args[:1], *args[3:], **kwargs)


class _Done:
    """The handle of a collective that is over."""

    def wait(self, *args) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def get_future(self):
        future = torch.futures.Future()
        future.set_result([])
        return future


def _handle(async_op):
    return _Done() if async_op else None


def _all_reduce(original, tensor, op=dist.ReduceOp.SUM, group=None, async_op=False):
    """With the mean, which gloo does not have, as a sum that is divided."""
    if op != dist.ReduceOp.AVG:
        return original(tensor, op, group, async_op)
    original(tensor, dist.ReduceOp.SUM, group)
    tensor.div_(dist.get_world_size(group))
    return _handle(async_op)


def _reduce(original, tensor, dst=None, op=dist.ReduceOp.SUM, group=None, async_op=False, **kwargs):
    if op != dist.ReduceOp.AVG:
        return original(tensor, dst, op, group, async_op, **kwargs)
    original(tensor, dst, dist.ReduceOp.SUM, group, **kwargs)
    tensor.div_(dist.get_world_size(group))
    return _handle(async_op)


def _all_gather_into_tensor(output_tensor, input_tensor, group=None, async_op=False):
    pieces = [torch.empty_like(input_tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(pieces, input_tensor.contiguous(), group)
    output_tensor.copy_(torch.stack(pieces).view(output_tensor.shape))
    return _handle(async_op)


def _reduce_scatter_tensor(output, input, op=dist.ReduceOp.SUM, group=None, async_op=False):
    total = input.clone().contiguous()
    dist.all_reduce(total, op, group)
    shares = total.view(dist.get_world_size(group), -1)
    output.copy_(shares[dist.get_rank(group)].view(output.shape))
    return _handle(async_op)


def _reduce_scatter(output, input_list, op=dist.ReduceOp.SUM, group=None, async_op=False):
    return _reduce_scatter_tensor(output, torch.stack(list(input_list)), op, group, async_op)
