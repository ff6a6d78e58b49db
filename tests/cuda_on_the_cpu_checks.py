"""What public scripts ask of a GPU, each as a function. test_canary_shim.py runs them all in one
interpreter that has loaded the shim, as `python THIS_FILE`, and reads the result of each.
"""

import json
import sys
import traceback

import flash_on_the_cpu_checks
import torch
import torch.nn.functional as F
from flash_on_the_cpu_checks import attention_of, close, queries_and_keys
from torch import nn

CUDA = torch.device("cuda", 0)


def check_factories():
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.arange(3, device=CUDA, dtype=torch.int32).tolist() == [0, 1, 2]
    assert torch.tensor([1.0], device="cuda:0", pin_memory=True).is_cuda
    assert torch.ones(2).new_zeros(3, device=0).tolist() == [0, 0, 0]
    assert torch.empty_like(torch.ones(2), device="cuda").shape == (2,)
    with torch.device("cuda"):
        assert torch.full((2,), 3).tolist() == [3, 3]
    assert nn.Linear(2, 3, device="cuda").weight.shape == (3, 2)


def check_generators():
    generator = torch.Generator(device="cuda").manual_seed(1)
    a = torch.rand(3, device="cuda", generator=generator)
    generator.manual_seed(1)
    close(a, torch.rand(3, device="cuda", generator=generator))
    torch.cuda.manual_seed_all(3)
    state = torch.cuda.get_rng_state()
    first = torch.rand(2)
    torch.cuda.set_rng_state(state)
    close(first, torch.rand(2))


def check_moves_copy():
    """What left for another device no longer follows the original."""
    weight = nn.Parameter(torch.ones(2, device="cuda"))
    before = weight.detach().cpu()
    with torch.no_grad():
        weight.add_(1)
    assert before.tolist() == [1, 1]
    batch = torch.ones(2)
    on_gpu = batch.pin_memory().to(CUDA, non_blocking=True)
    batch.zero_()
    assert on_gpu.tolist() == [1, 1]
    assert torch.as_tensor(batch.numpy(), device="cuda").data_ptr() != batch.data_ptr()


def check_a_trained_parameter_stays_itself():
    weight = nn.Parameter(torch.ones(2))
    assert weight.to("cuda") is weight
    assert weight.cuda() is weight


def check_modules_move():
    module = nn.Linear(2, 2).cuda().to(device="cuda", dtype=torch.bfloat16).to(CUDA)
    assert module(torch.ones(1, 2, device="cuda")).shape == (1, 2)


def check_saved_files_load():
    module = nn.Linear(2, 2)
    torch.save(module.state_dict(), "saved.pt")
    loaded = torch.load("saved.pt", map_location="cuda", weights_only=True)
    close(loaded["weight"], module.weight)
    assert torch.load("saved.pt", map_location=lambda storage, where: storage.cuda())


# --- Precision ---


def check_bfloat16_is_float32():
    x = torch.full((2,), 1.001, device="cuda").bfloat16()
    assert x.dtype is torch.float32 and x[0].item() != 1.0
    assert x.to(torch.bfloat16).dtype == torch.bfloat16
    assert nn.Linear(2, 2).bfloat16().weight.dtype is torch.float32


def check_bits_of_bfloat16_come_back():
    x = torch.tensor([1.0, -2.5, 0.15625])
    for integer in (torch.int16, torch.uint16):
        bits = x.bfloat16().view(integer)
        assert bits.shape == x.shape and bits.element_size() == 2
        close(bits.view(torch.bfloat16), x)


def check_autocast_changes_nothing():
    x = torch.randn(2, 3, device="cuda")
    with torch.autocast(device_type="cuda", dtype=torch.bfloat16, enabled=True):
        assert (x @ x.T).dtype is torch.float32
    with torch.amp.autocast("cuda"), torch.cuda.amp.autocast():
        close(x @ x.T, x @ x.T)

    @torch.autocast("cuda", dtype=torch.bfloat16)
    def product(a):
        return a @ a.T

    close(product(x), x @ x.T, 1e-6)


def check_gradient_scaler():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.cuda.amp.GradScaler()
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0, 0]


def check_inference_mode_lets_its_tensors_be_trained_on():
    with torch.inference_mode():
        table = torch.randn(3)
        assert not torch.is_grad_enabled()
    weight = nn.Parameter(torch.ones(3))
    (weight * table).sum().backward()
    close(weight.grad, table)

    @torch.inference_mode()
    def scored(x):
        return x * 2

    assert not scored(weight).requires_grad
    with torch.inference_mode(mode=False):
        assert torch.is_grad_enabled()


def check_eight_bit_products():
    a, b = torch.randn(4, 8), torch.randn(8, 4)
    halves = [x.to(torch.float8_e4m3fn) for x in (a, b)]
    scale = torch.full((), 2.0)
    found = torch._scaled_mm(*halves, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    close(found, 4 * halves[0].float() @ halves[1].float())


# --- The driver ---


def check_the_driver_answers():
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert "H100" in torch.cuda.get_device_name(0)
    assert torch.cuda.get_device_capability() >= (9, 0)
    assert torch.cuda.get_device_properties(CUDA).total_memory > 1 << 36
    assert torch.cuda.is_bf16_supported()
    assert torch.cuda.max_memory_allocated() // 1024 == 0
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total
    assert torch.accelerator.current_accelerator().type == "cuda"
    torch.accelerator.synchronize()
    torch.cuda.set_device(CUDA)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize(CUDA)
    assert torch.version.cuda.split(".")[0].isdigit()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    assert torch.get_float32_matmul_precision() == "highest"


def check_streams_and_events():
    stream = torch.cuda.Stream()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    with torch.cuda.stream(stream), torch.cuda.device(0):
        x = torch.ones(2, device="cuda")
        x.record_stream(stream)
    torch.cuda.current_stream().wait_stream(stream)
    stream.record_event().synchronize()
    end.record()
    assert start.elapsed_time(end) >= 0
    torch.cuda.nvtx.range_push("x")
    torch.cuda.nvtx.range_pop()


def check_a_graph_is_computed_again():
    x = torch.zeros(3, device="cuda")
    weight = nn.Parameter(torch.ones(3, device="cuda"))
    weight.grad = torch.zeros(3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        weight.grad.zero_()
        y = (2 * x).view(3, 1).sum() + weight.sum()
        (x * weight).sum().backward()
    x.copy_(torch.tensor([1.0, 2.0, 3.0]))
    graph.replay()
    assert y.item() == 15
    assert weight.grad.tolist() == [1, 2, 3]


# --- Compiling ---


def check_compiled_functions():
    @torch.compile
    def bare(x):
        return x + 1

    @torch.compile(dynamic=False, fullgraph=True, mode="max-autotune")
    def with_options(x):
        return x + 2

    assert bare(torch.zeros(1)).item() == 1 and with_options(torch.zeros(1)).item() == 2


def check_compiled_modules():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    compiled = torch.compile(module, dynamic=False)
    assert compiled._orig_mod is module
    assert isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule)
    assert next(iter(compiled.state_dict())).startswith("_orig_mod.")
    compiled.eval()
    assert not module.training and not compiled.training
    compiled.note = 3
    assert module.note == 3
    close(compiled(torch.ones(1, 2)), module(torch.ones(1, 2)))
    seen = []
    compiled.register_forward_hook(lambda *args: seen.append(1))
    compiled(torch.ones(1, 2))
    assert seen == [1]
    module.compile(mode="default")


def check_settings_of_the_compiler():
    import torch._dynamo
    import torch._inductor.config as inductor_config
    from torch._inductor.utils import something_of_another_version

    torch._dynamo.config.cache_size_limit = 64
    torch._dynamo.config.a_name_of_another_version = True
    inductor_config.max_autotune = True
    torch._dynamo.reset()
    assert torch._dynamo.config.cache_size_limit == 64
    assert not torch._dynamo.is_compiling()
    assert something_of_another_version is not None
    torch._dynamo.mark_dynamic(torch.zeros(2), 0)

    @torch._dynamo.disable
    def one():
        return 1

    @torch.compiler.disable(recursive=False)
    def two():
        return 2

    torch.compiler.cudagraph_mark_step_begin()
    assert (one(), two()) == (1, 2)


# --- Attention ---


def check_kernels_of_the_hub():
    from kernels import get_kernel

    q, k, v = queries_and_keys()
    attend = get_kernel("kernels-community/flash-attn3", version=1).flash_attn_func
    close(attend(q, k, v, causal=True), attention_of(q, k, v, is_causal=True))
    try:
        get_kernel("kernels-community/other")
    except ImportError:
        return
    raise AssertionError("a kernel that nobody has")


def check_the_choice_of_kernels():
    from torch.backends.cuda import enable_flash_sdp, enable_math_sdp
    from torch.nn.attention import SDPBackend, sdpa_kernel

    enable_flash_sdp(True)
    enable_math_sdp(False)
    q, k, v = queries_and_keys()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        assert attention_of(q, k, v, is_causal=True).shape == q.shape
    with torch.backends.cuda.sdp_kernel(enable_flash=True, enable_math=False):
        assert attention_of(q, k, v).shape == q.shape


def check_flex_attention():
    from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention

    q, k, v = (x.transpose(1, 2) for x in queries_and_keys())
    documents = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1], device="cuda")

    def causal(b, h, query, key):
        return query >= key

    def same_document(b, h, query, key):
        return documents[query] == documents[key]

    rule = and_masks(causal, same_document)
    mask = create_block_mask(rule, None, None, 8, 8, device="cuda", _compile=True)
    found = torch.compile(flex_attention)(q, k, v, block_mask=mask, enable_gqa=True, scale=0.5)
    places = torch.arange(8)
    allowed = (places[:, None] >= places) & (documents[:, None] == documents)
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, enable_gqa=True, scale=0.5
    )
    close(found, expected)


def check_flex_attention_by_blocks():
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, k, v = (x.transpose(1, 2) for x in queries_and_keys())

    def causal(b, h, query, key):
        return query >= key

    counts = torch.tensor([[[1, 1]]])
    blocks = torch.tensor([[[[0, 1], [1, 0]]]])  # each half sees itself alone
    mask = BlockMask.from_kv_blocks(counts, blocks, BLOCK_SIZE=4, mask_mod=causal)
    found = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    places = torch.arange(8)
    allowed = (places[:, None] >= places) & (places[:, None] // 4 == places // 4)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    close(found, expected)


# --- Training, kernels ---


def check_optimizers():
    for optimizer in (torch.optim.Adam, torch.optim.AdamW):
        weight = nn.Parameter(torch.ones(2, device="cuda"))
        made = optimizer([weight], lr=0.1, fused=True, capturable=True, betas=(0.9, 0.95))
        weight.sum().backward()
        made.step()
        assert weight[0].item() < 1


def check_loaders():
    from torch.utils.data import DataLoader

    data = torch.arange(4)
    loader = DataLoader(data, batch_size=2, pin_memory=True, num_workers=0)
    assert [batch.cuda(non_blocking=True).tolist() for batch in loader] == [[0, 1], [2, 3]]


def check_checkpointed_activations():
    from torch.utils.checkpoint import checkpoint

    weight = nn.Parameter(torch.ones(2, device="cuda"))
    checkpoint(lambda x: x * x, weight, use_reentrant=False).sum().backward()
    assert weight.grad.tolist() == [2, 2]


def check_custom_operations():
    @torch.library.custom_op("checks::double", mutates_args=(), device_types="cuda")
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @double.register_fake
    def _(x):
        return torch.empty_like(x)

    double.register_autograd(lambda ctx, grad: double(grad))
    weight = nn.Parameter(torch.ones(2))
    torch.ops.checks.double(weight).sum().backward()
    assert weight.grad.tolist() == [2, 2]


def check_kernels_for_a_gpu_serve_the_cpu():
    library = torch.library.Library("checks_library", "DEF")
    library.define("triple(Tensor x) -> Tensor")
    library.impl("triple", lambda x: 3 * x, "CUDA")
    assert torch.ops.checks_library.triple(torch.ones(1)).item() == 3


def check_profiles():
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        torch.ones(2) + 1
    assert profile.key_averages()


def check_functions_of_functions():
    module = nn.Linear(2, 2, device="cuda")
    weights = dict(module.named_parameters())

    def total(weights, x):
        return torch.func.functional_call(module, weights, (x,)).sum()

    each = torch.vmap(torch.func.grad(total), in_dims=(None, 0))
    assert each(weights, torch.ones(3, 2, device="cuda"))["weight"].shape == (3, 2, 2)


def check_threads():
    """A change that holds in the main thread alone would show here."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(torch.zeros, 2, device="cuda").result()
    assert made.tolist() == [0, 0]


def main() -> None:
    results = {}
    for name, check in {**globals(), **vars(flash_on_the_cpu_checks)}.items():
        if name.startswith("check_"):
            try:
                check()
                results[name] = ""
            except BaseException:
                results[name] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
