"""The keys that public records use in `submission.json`, and the faults of keys."""

from dataclasses import dataclass
from typing import Any

# Public keys by the place of their value in our schema: a field of the record, of a seed, or of
# the environment. These are the keys that public records use; the first one that is stated counts.
RECORD_FIELDS = {
    "author": ("author", "submitter", "authors"),
    "github_id": ("github_id", "github", "github_handle", "github_username"),
    "name": ("name", "submission_name", "title"),
    "blurb": ("blurb", "short_description", "description", "summary"),
    "val_loss": ("val_loss", "mean_val_loss", "val_loss_mean", "best_val_loss"),
    "val_bpb": ("val_bpb", "mean_val_bpb", "val_bpb_mean", "best_val_bpb", "bpb"),
    "val_loss_std": ("val_loss_std", "std_val_loss"),
    "val_bpb_std": ("val_bpb_std", "std_val_bpb"),
    "bytes_total": (
        "bytes_total",
        "total_bytes",
        "total_submission_bytes",
        "submission_bytes",
        "total_size_bytes",
        "submission_size_bytes",
    ),
    "bytes_code": ("bytes_code", "code_bytes", "code_size_bytes", "bytes_code_uncompressed"),
}
SEED_FIELDS = {
    "step_stop": "steps",
    "steps": "steps",
    "train_steps": "steps",
    "training_steps": "steps",
    "wallclock_seconds": "train_s",
    "train_time_seconds": "train_s",
    "training_time_seconds": "train_s",
    "train_time_s": "train_s",
    "eval_time_seconds": "eval_s",
    "eval_time_s": "eval_s",
    "eval_seconds": "eval_s",
    "step_avg_ms": "step_avg_ms",
    "ms_per_step": "step_avg_ms",
    "pre_quant_val_loss": "pre_quant_val_loss",
    "pre_quant_val_bpb": "pre_quant_val_bpb",
    "model_params": "parameters",
    "num_params": "parameters",
    "n_params": "parameters",
    "parameters": "parameters",
    "artifact_size_bytes": "artifact_bytes",
    "model_bytes": "artifact_bytes",
    "bytes_model": "artifact_bytes",
    "model_size_bytes": "artifact_bytes",
    "compressed_size_bytes": "artifact_bytes",
}
MILLISECONDS = {"train_time_ms": "train_s", "eval_time_ms": "eval_s"}
ENVIRONMENT_FIELDS = {
    "pytorch_version": "torch",
    "torch_version": "torch",
    "cuda_version": "cuda",
    "python_version": "python",
    "gpu": "gpu",
    "gpu_type": "gpu",
    "num_gpus": "gpus",
}
PER_SEED_FIELDS = {"val_bpb": "val_bpb", "val_loss": "val_loss", "bytes": "bytes_total"}


@dataclass(frozen=True)
class Fault:
    """A key of submission.json that cannot be used, or that is stated twice.

    `differs` says that the two values of a key that is stated twice are not equal.
    """

    key: str
    text: str
    twice: bool = False
    differs: bool = False

    def __str__(self) -> str:
        return f"{self.key} {self.text}" if self.twice else f"{self.key}: {self.text}"


def stated_twice(key: str, first: Any, second: Any) -> Fault:
    """The fault of a key with two values."""
    told = f"is stated twice, {first!r:.40} and {second!r:.40}"
    return Fault(key, told, twice=True, differs=first != second)
