"""Batches: every row gets its own result in the order it came, within the budget, even where memory runs out."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.core.records import InputError
from tokenskip_lib.models.batching import TokenBatches

some_lengths = st.lists(st.integers(0, 60), max_size=40)
a_budget = st.integers(1, 200)


class Memory:
    """Runs batches as a device would that holds `capacity` padded tokens; its results name their row."""

    def __init__(self, lengths: list[int], capacity: int = 1 << 30):
        self.lengths = lengths
        self.capacity = capacity
        self.batches: list[list[int]] = []
        self.refused = 0

    def __call__(self, batch: list[int]) -> list[str]:
        if self.padded(batch) > self.capacity:
            self.refused += 1
            raise torch.OutOfMemoryError("injected")
        self.batches.append(list(batch))
        return [f"row {index}" for index in batch]

    def padded(self, batch: list[int]) -> int:
        return len(batch) * max(self.lengths[index] for index in batch)


@given(some_lengths, a_budget)
def test_results_come_in_the_order_of_the_rows(lengths, budget):
    run = Memory(lengths)
    assert TokenBatches(budget, torch.device("cpu")).map(lengths, run) == [
        f"row {index}" for index in range(len(lengths))
    ]
    assert sorted(index for batch in run.batches for index in batch) == list(range(len(lengths)))


@given(some_lengths, a_budget)
def test_no_batch_exceeds_the_budget_unless_it_is_one_row(lengths, budget):
    run = Memory(lengths)
    TokenBatches(budget, torch.device("cpu")).map(lengths, run)
    assert all(len(batch) == 1 or run.padded(batch) <= budget for batch in run.batches)


@given(some_lengths, a_budget)
def test_the_longest_rows_come_first_so_that_memory_runs_out_at_once_or_never(lengths, budget):
    run = Memory(lengths)
    TokenBatches(budget, torch.device("cpu")).map(lengths, run)
    order = [lengths[index] for batch in run.batches for index in batch]
    assert order == sorted(lengths, reverse=True)


def test_rows_of_one_length_share_as_few_batches_as_the_budget_allows():
    run = Memory([10] * 10)
    TokenBatches(40, torch.device("cpu")).map(run.lengths, run)
    assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_no_rows_need_no_batch():
    run = Memory([])
    assert TokenBatches(8, torch.device("cpu")).map([], run) == [] and run.batches == []


def test_running_out_of_memory_halves_the_budget_for_the_batch_and_all_that_follow():
    run = Memory([10] * 16, capacity=40)
    batches = TokenBatches(160, torch.device("cpu"))
    assert batches.map(run.lengths, run) == [f"row {index}" for index in range(16)]
    assert run.refused == 2 and batches.budget == 40
    assert [len(batch) for batch in run.batches] == [4, 4, 4, 4]
    batches.map(run.lengths, run)
    assert run.refused == 2  # it has learnt


@given(some_lengths.filter(any), a_budget, st.integers(60, 400))
def test_every_row_gets_its_result_whatever_the_devices_memory(lengths, budget, capacity):
    run = Memory(lengths, capacity)
    batches = TokenBatches(budget, torch.device("cpu"))
    assert batches.map(lengths, run) == [f"row {index}" for index in range(len(lengths))]
    assert 1 <= batches.budget <= budget


def test_a_single_row_that_does_not_fit_is_refused_in_one_line():
    run = Memory([70, 5, 5], capacity=60)
    with pytest.raises(InputError, match=r"^[^\n]*70 tokens[^\n]*$"):
        TokenBatches(100, torch.device("cpu")).map(run.lengths, run)


def test_other_errors_are_not_taken_for_memory():
    def fail(batch):
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        TokenBatches(10, torch.device("cpu")).map([1, 2], fail)


def test_a_batch_without_a_result_for_each_row_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        TokenBatches(10, torch.device("cpu")).map([1, 1], lambda batch: ["only one"])


def test_the_budget_suits_the_device_where_none_is_given():
    assert TokenBatches(None, torch.device("cpu")).budget == 512
    assert TokenBatches(None, torch.device("cuda")).budget > 512
    assert TokenBatches(7, torch.device("cuda")).budget == 7


def test_a_failed_batch_is_let_go_before_memory_is_given_back(monkeypatch):
    made, alive_then = [], []

    def run(batch):
        tensor = torch.zeros(3)
        made.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("injected")
        return batch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive_then.append(made[-1]() is not None))
    assert TokenBatches(20, torch.device("cpu")).map([10, 10], run) == [0, 1]
    assert alive_then == [False]
