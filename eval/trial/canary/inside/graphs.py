"""CUDA graphs: what was captured is computed again at each replay."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .replacing import nothing, put


class _Recorder(TorchDispatchMode):
    """Runs every operation and notes it down with what it read and what it made."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = operation(*args, **kwargs)
        self.steps.append((operation, args, kwargs, made))
        return made


class _Graph:
    """torch.cuda.CUDAGraph: a list of operations on tensors that stay where they are."""

    def __init__(self, *args, **kwargs):
        self.steps = []

    def replay(self) -> None:
        """Compute every step again; results go to the memory of the captured ones."""
        with torch.no_grad():
            for operation, args, kwargs, made in self.steps:
                if _makes_a_view(operation):
                    continue  # it still shows the memory that the other steps change
                again = operation(*args, **kwargs)
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)

    def pool(self):
        return (0, 0)

    capture_begin = nothing
    capture_end = nothing
    reset = nothing
    enable_debug_mode = nothing
    debug_dump = nothing


def _makes_a_view(operation) -> bool:
    returned = operation._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returned)


class _Capture:
    """`with torch.cuda.graph(graph):`"""

    def __init__(self, cuda_graph, *args, **kwargs):
        self.captured = cuda_graph
        self.recorder = _Recorder()

    def __enter__(self):
        self.recorder.__enter__()

    def __exit__(self, *error):
        self.recorder.__exit__(*error)
        self.captured.steps = self.recorder.steps


def _make_graphed_callables(callables, *args, **kwargs):
    return callables


def _no(*args) -> bool:
    return False


def _pool():
    return (0, 0)


def lead() -> None:
    """Change torch."""
    put(
        torch.cuda,
        CUDAGraph=_Graph,
        graph=_Capture,
        graph_pool_handle=_pool,
        is_current_stream_capturing=_no,
        make_graphed_callables=_make_graphed_callables,
    )
