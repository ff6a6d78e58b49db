"""The test `bytes`: the data against its manifest, the claim and the contest's constants."""

from eval.papers.folder import Record
from eval.text.corpus.dataset import Dataset
from eval.text.corpus.exports import check_fineweb_bytes
from eval.trial.audit.collector import Collector
from eval.trial.runner.scores import denominator


def judge_bytes(record: Record, dataset: Dataset, into: Collector) -> None:
    """Tokens decoded by the referee's own reader against byte table, manifest, claim and the contest's constants."""
    data, table = dataset, dataset.table
    split = data.split("val")
    into.ran_check()
    for complaint in split.complaints + data.tokenizer_complaints:
        into.add(
            "INVALID",
            data.folder.name,
            "the data that the manifest describes",
            complaint,
            "shards and tokenizer are bound by sha256",
        )
    decoded, counted = (
        table.decoded_bytes(split.tokens),
        int(table.table_bytes(split.tokens).sum()),
    )
    source = split.stated.source_bytes
    into.figure("decoded_bytes", decoded)
    into.figure("byte_table_bytes", counted)
    if source is not None:
        into.figure("source_bytes_of_the_manifest", source)
    if split.sidecar is not None:
        into.figure("sidecar_bytes", int(split.sidecar.sum()))
        if split.sidecar_complaint:
            into.add(
                "INVALID",
                f"{data.folder.name}: byte sidecar",
                f"{source:,} source bytes"
                if source is not None
                else "source_bytes in the manifest",
                f"{int(split.sidecar.sum()):,}",
                "the sidecar keeps the bytes of the original text",
            )
    elif table.lossy:
        into.skip(f"the tokenizer {', '.join(table.lossy)}: the contest divides by the byte table")
    elif source is not None and source != decoded:
        into.add(
            "INVALID",
            f"{data.folder.name}: source_bytes",
            f"{decoded:,} as decoded",
            f"{source:,} in the manifest",
            "lossless text comes back byte for byte",
        )
    if not table.lossy and decoded != counted:
        into.add(
            "INVALID",
            "byte table",
            f"{decoded:,} decoded bytes",
            f"{counted:,}",
            "the table sums to the decoded text",
        )
    if len(split.spans) != split.stated.documents:
        into.add(
            "INVALID",
            f"{data.folder.name}: documents",
            f"{split.stated.documents:,} as the manifest says",
            f"{len(split.spans):,}",
            "every document begins with BOS",
        )
    if (
        not table.lossy
        and split.sidecar is None
        and data.manifest.version_rule == "documents"
        and not split.complaints
        and data.has("train")
    ):
        found = data.decoded_version()
        if found != data.manifest.version:
            into.add(
                "INVALID",
                f"{data.folder.name}: version",
                f"{data.manifest.version[:16]}…",
                f"{found[:16]}… from the decoded documents",
                "the version is a hash of the text",
            )
    _judge_claim(record, dataset, denominator(split, table), len(split.tokens), into)


def _judge_claim(
    record: Record, dataset: Dataset, scored_bytes: int, tokens: int, into: Collector
) -> None:
    submission = record.submission
    if submission is None:
        into.skip("no submission.json to compare with")
        return
    if submission.data is not None:
        stated, here = submission.data, dataset.manifest
        if stated.version != here.version:
            into.add(
                "WARN",
                "corpus version",
                f"{stated.version[:16]}… as the record says",
                f"{here.version[:16]}… in {dataset.folder.name}",
                "scores of different texts are not compared",
            )
            return
        pairs = {
            "tokenizer_sha256": (here.tokenizer.sha256, stated.tokenizer_sha256),
            "val_tokens": (tokens, stated.val_tokens),
            "val_bytes": (scored_bytes, stated.val_bytes),
        }
        for name, (found, claimed) in pairs.items():
            if found != claimed:
                into.add(
                    "INVALID",
                    f"submission.json: {name}",
                    f"{found}",
                    f"{claimed}",
                    "the record was scored on this data",
                )
    for seed, claim in submission.seed_results.items():
        if claim.scored_bytes is not None and claim.scored_bytes != scored_bytes:
            into.add(
                "INVALID",
                f"scored_bytes of seed {seed}",
                f"{scored_bytes:,}",
                f"{claim.scored_bytes:,}",
                "the referee counts bytes",
            )
        if "fineweb" in dataset.manifest.corpus and claim.val_loss and claim.scored_tokens:
            _, implied, complaint = check_fineweb_bytes(
                claim.scored_tokens, claim.val_loss, claim.val_bpb
            )
            into.figure("implied_bytes", implied)
            if complaint:
                into.add(
                    "INVALID",
                    f"val_loss and val_bpb of seed {seed}",
                    "the bytes of the published split",
                    complaint,
                    "VALIDITY 2.2",
                )
