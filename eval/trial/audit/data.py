"""The test `bytes`: the data against its manifest, the claim and the contest's constants."""

from eval.papers.folder import Record
from eval.papers.submission.schema import SeedResult, Submission
from eval.text.corpus.dataset import Dataset, Split
from eval.text.corpus.exports import check_fineweb_bytes
from eval.trial.audit.collector import Collector
from eval.trial.runner.scores import denominator


def judge_bytes(record: Record, dataset: Dataset, into: Collector) -> None:
    """Tokens, decoded by the referee's own reader, against everything that states their bytes."""
    split = dataset.split("val")
    into.ran_check()
    for complaint in split.complaints + dataset.tokenizer_complaints:
        into.add(
            "INVALID",
            dataset.folder.name,
            "the data that the manifest describes",
            complaint,
            "shards and tokenizer are bound by sha256",
        )
    _judge_sums(dataset, split, into)
    if len(split.spans) != split.stated.documents:
        into.add(
            "INVALID",
            f"{dataset.folder.name}: documents",
            f"{split.stated.documents:,} as the manifest says",
            f"{len(split.spans):,}",
            "every document begins with BOS",
        )
    _judge_version(dataset, split, into)
    submission = record.submission
    if submission is None:
        into.skip("no submission.json to compare with")
        return
    scored_bytes = denominator(split, dataset.table)
    if _judge_stated_data(submission, dataset, len(split.tokens), scored_bytes, into):
        is_fineweb = "fineweb" in dataset.manifest.corpus
        for seed, claim in submission.seed_results.items():
            _judge_seed(seed, claim, scored_bytes, is_fineweb, into)


def _judge_sums(dataset: Dataset, split: Split, into: Collector) -> None:
    """Decoded bytes, the byte table's sum, the manifest's source bytes and the sidecar's sum."""
    table = dataset.table
    decoded = table.decoded_bytes(split.tokens)
    counted = int(table.table_bytes(split.tokens).sum())
    source = split.stated.source_bytes
    into.figure("decoded_bytes", decoded)
    into.figure("byte_table_bytes", counted)
    if source is not None:
        into.figure("source_bytes_of_the_manifest", source)
    if split.sidecar is not None:
        _judge_sidecar(dataset, split, into)
    elif table.lossy:
        into.skip(f"the tokenizer {', '.join(table.lossy)}: the contest divides by the byte table")
    elif source is not None and source != decoded:
        into.add(
            "INVALID",
            f"{dataset.folder.name}: source_bytes",
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


def _judge_sidecar(dataset: Dataset, split: Split, into: Collector) -> None:
    total = int(split.sidecar.sum())
    into.figure("sidecar_bytes", total)
    if not split.sidecar_complaint:
        return
    source = split.stated.source_bytes
    expected = "source_bytes in the manifest" if source is None else f"{source:,} source bytes"
    into.add(
        "INVALID",
        f"{dataset.folder.name}: byte sidecar",
        expected,
        f"{total:,}",
        "the sidecar keeps the bytes of the original text",
    )


def _judge_version(dataset: Dataset, split: Split, into: Collector) -> None:
    """The version is a hash of the documents, where these can be decoded exactly."""
    exact = not dataset.table.lossy and split.sidecar is None and not split.complaints
    of_documents = dataset.manifest.version_rule == "documents" and dataset.has("train")
    if not exact or not of_documents:
        return
    found = dataset.decoded_version()
    if found != dataset.manifest.version:
        into.add(
            "INVALID",
            f"{dataset.folder.name}: version",
            f"{dataset.manifest.version[:16]}…",
            f"{found[:16]}… from the decoded documents",
            "the version is a hash of the text",
        )


def _judge_stated_data(
    submission: Submission, dataset: Dataset, tokens: int, scored_bytes: int, into: Collector
) -> bool:
    """What submission.json says of the data. Whether its scores are of this text."""
    stated = submission.data
    if stated is None:
        return True
    here = dataset.manifest
    if stated.version != here.version:
        into.add(
            "WARN",
            "corpus version",
            f"{stated.version[:16]}… as the record says",
            f"{here.version[:16]}… in {dataset.folder.name}",
            "scores of different texts are not compared",
        )
        return False
    found_and_claimed = {
        "tokenizer_sha256": (here.tokenizer.sha256, stated.tokenizer_sha256),
        "val_tokens": (tokens, stated.val_tokens),
        "val_bytes": (scored_bytes, stated.val_bytes),
    }
    for name, (found, claimed) in found_and_claimed.items():
        if found != claimed:
            into.add(
                "INVALID",
                f"submission.json: {name}",
                f"{found}",
                f"{claimed}",
                "the record was scored on this data",
            )
    return True


def _judge_seed(
    seed: str, claim: SeedResult, scored_bytes: int, is_fineweb: bool, into: Collector
) -> None:
    """Bytes that a seed's claim states, or that follow from its loss."""
    if claim.scored_bytes is not None and claim.scored_bytes != scored_bytes:
        into.add(
            "INVALID",
            f"scored_bytes of seed {seed}",
            f"{scored_bytes:,}",
            f"{claim.scored_bytes:,}",
            "the referee counts bytes",
        )
    if is_fineweb and claim.val_loss and claim.scored_tokens:
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
