"""Timing: every method, ratio and batch size has its row, and what it counts is what was answered."""

import pandas as pd
import pytest
import torch

from tokenskip_lib.analyses.timing import ComparedTiming, time_run
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.evaluation.tables import column_names
from tokenskip_lib.experiments.run import Run


@pytest.fixture
def run(tiny_profile, make_adapter):
    methods = {"original": [], "tokenskip": [0.5, 1.0], "be_concise": []}
    settings = tiny_profile.evaluation.model_copy(update={"adapter": str(make_adapter(0)), "methods": methods})
    return Run.create(tiny_profile.model_copy(update={"evaluation": settings}))


def test_latency_and_throughput_have_a_row_a_method_and_ratio(run):
    timings = time_run(run, 2, [1, 2], rounds=3)
    assert list(timings.columns) == column_names(ComparedTiming)
    pairs = [("original", 1.0), ("tokenskip", 1.0), ("tokenskip", 0.5)]
    assert sorted(zip(timings["batch_size"], timings["method"], timings["ratio"], strict=True)) == sorted(
        (size, *pair) for size in (1, 2) for pair in pairs
    )
    assert set(timings["n"]) == {2} and set(timings["rounds"]) == {3} and timings["tokens"].between(1, 8).all()
    assert (timings["peak_memory_mb"] > 10).all()
    assert set(timings["device"]) == {f"CPU, {torch.get_num_threads()} threads, float32"}
    made = timings["tokens"] / timings["seconds_per_problem"]
    assert timings["tokens_per_second"].to_numpy() == pytest.approx(made.to_numpy(), rel=0.05)
    original = timings[timings["method"] == "original"]
    assert set(original["speedup"]) == set(original["speedup_low"]) == set(original["speedup_high"]) == {1.0}
    assert timings["speedup"].between(timings["speedup_low"], timings["speedup_high"]).all()
    for size in (1, 2):
        rows = timings[timings["batch_size"] == size]
        own = rows.loc[rows["method"] == "original", "seconds_per_problem"].iloc[0]
        assert rows["speedup"].to_numpy() == pytest.approx((own / rows["seconds_per_problem"]).to_numpy(), rel=0.05)
    assert len(pd.read_csv(run.folder / "results" / "timings.csv")) == 6


def test_a_servers_profile_is_refused(run):
    server = ServerSettings(url="http://127.0.0.1:9/v1", model="base")
    with pytest.raises(InputError, match="server=null"):
        time_run(Run.create(run.profile.model_copy(update={"server": server})), 2, [1])


@pytest.mark.parametrize(("size", "batch_sizes"), [(0, [1]), (2, [])])
def test_nothing_to_time_is_one_line(run, size, batch_sizes):
    with pytest.raises(InputError, match="at least one problem, one round and one batch size"):
        time_run(run, size, batch_sizes)
