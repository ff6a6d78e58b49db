"""The driver: what a script asks torch.cuda, answered as an H100 would answer."""

import os
import time

import torch

from .devices import CPU
from .replacing import Idle, nothing, put, wrap

NAME = "NVIDIA H100 80GB HBM3"
CAPABILITY = (9, 0)
TOTAL_BYTES = 80 << 30
CUDA_VERSION = "12.8"
ANSWERED_WITH_NOTHING = (
    *("_lazy_init", "empty_cache", "init", "ipc_collect", "manual_seed", "manual_seed_all"),
    *("reset_accumulated_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"),
    *("reset_peak_memory_stats", "seed", "seed_all", "set_device", "set_stream"),
    *("set_per_process_memory_fraction", "set_sync_debug_mode", "synchronize", "_sleep"),
)
ANSWERED_WITH_ZERO = (
    *("current_device", "get_sync_debug_mode", "max_memory_allocated", "max_memory_cached"),
    *("max_memory_reserved", "memory_allocated", "memory_cached", "memory_reserved"),
    *("memory_usage", "power_draw", "temperature", "utilization", "clock_rate"),
)


def lead() -> None:
    """Change torch."""
    put(torch.cuda, **dict.fromkeys(ANSWERED_WITH_NOTHING, nothing))
    put(torch.cuda, **dict.fromkeys(ANSWERED_WITH_ZERO, _zero))
    # torch.cuda.memory and torch.cuda.random hold the same functions once more.
    for owner in (torch.cuda.memory, torch.cuda.random):
        for name in (*ANSWERED_WITH_NOTHING, *ANSWERED_WITH_ZERO):
            if hasattr(owner, name):
                setattr(owner, name, getattr(torch.cuda, name))
    _lead_properties()
    _lead_random_state()
    _lead_streams()
    _lead_accelerator()
    torch.version.cuda = CUDA_VERSION
    torch.backends.cuda.is_built = _yes
    torch.backends.cuda.preferred_linalg_library = nothing
    torch.cuda.nccl.version = _nccl_version
    wrap(torch.profiler.profile, "__init__", _profile)


def _profile(original, self, *args, **kwargs):
    """torch.profiler.profile of what runs here, whatever it is asked to watch."""
    kwargs["activities"] = [torch.profiler.ProfilerActivity.CPU]
    return original(self, **kwargs)


def _yes(*args, **kwargs) -> bool:
    return True


def _zero(*args, **kwargs) -> int:
    return 0


# --- Properties ---


class _Properties:
    """torch.cuda.get_device_properties()."""

    name = NAME
    major, minor = CAPABILITY
    total_memory = TOTAL_BYTES
    multi_processor_count = 132
    warp_size = 32
    max_threads_per_multi_processor = 2048
    max_threads_per_block = 1024
    regs_per_multiprocessor = 65536
    shared_memory_per_block = 48 << 10
    shared_memory_per_block_optin = 227 << 10
    shared_memory_per_multiprocessor = 228 << 10
    L2_cache_size = 50 << 20
    is_integrated = False
    is_multi_gpu_board = False
    gcnArchName = NAME
    uuid = "00000000-0000-0000-0000-000000000000"


def _lead_properties() -> None:
    put(
        torch.cuda,
        is_available=_yes,
        is_initialized=_yes,
        is_bf16_supported=_yes,
        is_tf32_supported=_yes,
        device_count=_device_count,
        get_device_properties=_properties,
        get_device_name=_device_name,
        get_device_capability=_capability,
        get_arch_list=_architectures,
        mem_get_info=_memory_info,
        memory_stats=_no_facts,
        memory_summary=_no_text,
        memory_snapshot=_no_list,
        list_gpu_processes=_no_text,
        can_device_access_peer=_yes,
    )
    torch.cuda.memory.mem_get_info = _memory_info
    torch.cuda.memory.memory_stats = _no_facts


def _device_count() -> int:
    """As many GPUs as ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


def _properties(device=None):
    return _Properties()


def _device_name(device=None) -> str:
    return NAME


def _capability(device=None) -> tuple[int, int]:
    return CAPABILITY


def _architectures() -> list[str]:
    return ["sm_90"]


def _memory_info(device=None) -> tuple[int, int]:
    return TOTAL_BYTES, TOTAL_BYTES


def _no_facts(device=None) -> dict:
    return {}


def _no_text(*args, **kwargs) -> str:
    return ""


def _no_list(*args, **kwargs) -> list:
    return []


def _nccl_version() -> tuple[int, int, int]:
    return (2, 27, 5)


# --- State of the random numbers: a GPU's generator is the CPU's ---


def _lead_random_state() -> None:
    values = {
        "get_rng_state": _random_state,
        "get_rng_state_all": _random_states,
        "set_rng_state": _set_random_state,
        "set_rng_state_all": _set_random_states,
        "initial_seed": torch.initial_seed,
    }
    put(torch.cuda, **values)
    put(torch.cuda.random, **values)


def _random_state(device=None):
    return torch.get_rng_state()


def _random_states() -> list:
    return [torch.get_rng_state()]


def _set_random_state(state, device=None) -> None:
    torch.set_rng_state(state.cpu())


def _set_random_states(states) -> None:
    for state in states:
        torch.set_rng_state(state.cpu())


# --- Streams and events: the CPU does everything at once and in order ---


class _Event:
    """torch.cuda.Event: the moment of `record`."""

    def __init__(self, *args, **kwargs):
        self.seconds = 0.0

    def record(self, stream=None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later) -> float:
        """Milliseconds from this event to `later`."""
        return 1000.0 * (later.seconds - self.seconds)

    def query(self) -> bool:
        return True

    synchronize = nothing
    wait = nothing


class _Stream:
    """torch.cuda.Stream, which has nothing to wait for."""

    cuda_stream = 0
    device = CPU
    priority = 0

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def record_event(self, event=None):
        """The event, recorded now."""
        recorded = event or _Event()
        recorded.record()
        return recorded

    def query(self) -> bool:
        return True

    synchronize = nothing
    wait_event = nothing
    wait_stream = nothing


def _lead_streams() -> None:
    put(
        torch.cuda,
        Event=_Event,
        Stream=_Stream,
        ExternalStream=_Stream,
        StreamContext=_Nowhere,
        stream=_Nowhere,
        device=_Nowhere,
        device_of=_Nowhere,
        current_stream=_Stream,
        default_stream=_Stream,
    )
    put(torch.cuda.nvtx, range_push=_zero, range_pop=_zero, mark=nothing, range=_Nowhere)
    put(torch.cuda.profiler, start=nothing, stop=nothing, profile=_Nowhere)
    torch.cuda.cudart = _Cudart


def _lead_accelerator() -> None:
    """torch.accelerator, where this version has it: the same by another name."""
    if not hasattr(torch, "accelerator"):
        return
    put(
        torch.accelerator,
        current_accelerator=_gpu,
        current_device_idx=_zero,
        current_device_index=_zero,
        current_stream=_Stream,
        device_count=_device_count,
        empty_cache=nothing,
        is_available=_yes,
        max_memory_allocated=_zero,
        max_memory_reserved=_zero,
        memory_allocated=_zero,
        memory_reserved=_zero,
        reset_peak_memory_stats=nothing,
        set_device_idx=nothing,
        set_device_index=nothing,
        set_stream=nothing,
        synchronize=nothing,
    )


def _gpu(*args, **kwargs):
    return torch.device("cuda")


class _Nowhere(Idle):
    """`with torch.cuda.device(1):` and the like: there is one place to be."""


class _Cudart:
    """torch.cuda.cudart(): the runtime library, whose calls return success."""

    def __getattr__(self, name):
        return _zero
