"""`benchmarks.peers`: all workers train on exactly the same examples, and another example ends the comparison."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import workload as w
from benchmarks.peers import Run, Worker, check_examples, table
from benchmarks.worker_ours import ROW_LENGTH, sequences_of, update_batches
from zephyr_jax.batch import SharedTokenBatch

SEED, UPDATES = 3, 2
OURS = Worker("ours", "python", {})


def result(digests: list[str], seconds: float = 1.0) -> w.Result:
    return w.Result("ours", "dpo", 1000, seconds, seconds, 2000, 1500, "", digests)


@pytest.mark.parametrize(("mode", "shares"), [("dpo", True), ("dpo", False), ("sft", True)])
def test_packed_updates_have_the_examples_of_the_workload(mode: str, shares: bool) -> None:
    """Law: every packed batch holds the sequences of its update and no others, with the targets of the workload."""
    updates = w.make_batches(mode, UPDATES - 1, SEED)
    source, plan = update_batches(mode, updates, SEED, shares)
    rows = [source[index].rows for index in range(UPDATES)]
    assert isinstance(rows[0], SharedTokenBatch) == (mode == "dpo" and shares)
    assert [w.digest(w.hash_sequence(*sequence) for sequence in sequences_of(own)) for own in rows] == w.digest_batches(
        updates, mode
    )
    assert [int(own.targets.sum()) for own in rows] == [w.count_targets(pairs, mode) for pairs in updates]
    needed = max(len(step) for step in plan.steps)
    assert plan.shape == (needed, 1, ROW_LENGTH[mode]), "no row is empty that the largest update does not need"


def test_a_digest_depends_on_every_sequence_and_not_on_their_order() -> None:
    """Law: another token, another target or another count of a sequence is another digest."""
    tokens, targets = np.arange(5), np.arange(5) > 1
    one, two = w.hash_sequence(tokens, targets), w.hash_sequence(tokens + 1, targets)
    assert w.digest([one, two]) == w.digest([two, one])
    others = [w.hash_sequence(tokens, np.arange(5) > 2), w.hash_sequence(tokens[:4], targets[:4])]
    digests = [w.digest(hashes) for hashes in ([one], [one, one], [one, two], *([other] for other in others))]
    assert len(set(digests)) == len(digests)


def test_other_examples_end_the_comparison() -> None:
    """Law: the digests of the workload pass; those of another seed, or of fewer updates, do not."""
    digests = w.digest_batches(w.make_batches("dpo", UPDATES, SEED)[1:], "dpo")
    check_examples(OURS, result(digests), UPDATES, SEED)
    with pytest.raises(SystemExit, match=rf"worker ours, copied-prompts .*expected the digests .*got {digests[0]}\."):
        check_examples(replace(OURS, variant="copied-prompts"), result(digests[:1]), UPDATES, SEED)
    with pytest.raises(SystemExit, match="other examples than the workload of seed 4"):
        check_examples(OURS, result(digests), UPDATES, SEED + 1)


def test_the_table_compares_within_a_round() -> None:
    """Law: a row for each worker and variant, and the ratio of its rate to the others' in the same round."""
    variant = replace(OURS, variant="copied-prompts").title
    runs = {
        name: [Run(result([], seconds), 0.0, 1.0) for seconds in of_rounds]
        for name, of_rounds in (("ours", [1.0, 2.0, 4.0]), (variant, [2.0, 3.0, 4.0]))
    }
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(runs).splitlines()]
    assert lines[0][:3] == ["worker", "target tokens / CPU-s", "ratio to ours, copied-prompts"]
    assert [line[:3] for line in lines[2:]] == [
        ["ours", "500.0 (250.0-1000.0)", "1.50 (1.00-2.00)"],
        ["ours, copied-prompts", "333.3 (250.0-500.0)", "1.00 (1.00-1.00)"],
    ]
