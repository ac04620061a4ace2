"""The executor on a real Ray cluster: two nodes on this machine's loopback, whose workers and nodes are killed."""

import os
import signal
import time

import pytest

from tokenskip_lib.core import cluster as clusters
from tokenskip_lib.core.cluster import build_executor
from tokenskip_lib.core.provenance import versions
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import ExecutionSettings

pytestmark = pytest.mark.cluster
TWO = ExecutionSettings(kind="ray", workers=2)
GROUPS = [list(range(first, first + 4)) for first in range(0, 40, 4)]


def _squares(act=lambda number: None):
    """What a worker builds: squares of numbers; `act` is called with each number first."""

    def build():
        def work(numbers):
            for number in numbers:
                act(number)
            return [number * number for number in numbers]

        return work

    return build


def _once(path, number):
    """An act that kills its worker at a number, the first time."""

    def act(at):
        if at == number and not os.path.exists(path):  # noqa: PTH110  # pickled by value, so it imports little
            open(path, "w").close()  # noqa: PTH123
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def test_results_come_in_order_from_two_nodes(cluster, tmp_path):
    place = tmp_path

    def build():
        import ray

        node = ray.get_runtime_context().get_node_id()
        (place / node).touch()
        deadline = time.monotonic() + 60
        while len(list(place.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return lambda numbers: [(number, node) for number in numbers if not time.sleep(0.05)]

    done = list(build_executor(build, TWO).map(GROUPS))
    assert [number for each in done for number, _ in each.made] == list(range(40))
    assert [each.items for each in done] == GROUPS and not any(each.lost for each in done)
    assert len({node for each in done for _, node in each.made}) == 2


def test_a_killed_worker_loses_and_doubles_nothing(cluster, tmp_path):
    done = list(build_executor(_squares(_once(str(tmp_path / "killed"), 17)), TWO).map(GROUPS))
    assert (tmp_path / "killed").exists()
    assert [record for each in done for record in each.made] == [number * number for number in range(40)]


def test_an_item_that_kills_its_worker_is_left_out_alone(cluster):
    def act(number):
        if number == 17:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = TWO.model_copy(update={"tries": 2})
    done = list(build_executor(_squares(act), settings).map(GROUPS))
    assert [record for each in done for record in each.made] == [n * n for n in range(40) if n != 17]
    [(item, reason)] = [lost for each in done for lost in each.lost]
    assert item == 17 and reason.startswith("its worker died") and reason.endswith(", 2 times")


def test_a_node_that_goes_and_one_that_comes(cluster, tmp_path):
    gone, here = [], set()

    def build():
        import ray

        def work(numbers):
            time.sleep(0.1)
            return [(number, ray.get_runtime_context().get_node_id()) for number in numbers]

        return work

    records = []
    for number, done in enumerate(build_executor(build, TWO).map([[n] for n in range(60)])):
        records += [item for item, _ in done.made]
        if number == 5:
            gone.append(cluster.other.node_id)
            cluster.remove_other()
        if number == 20:
            cluster.add_other()
        if number > 20:
            here |= {node for _, node in done.made}
    assert records == list(range(60))
    assert not set(gone) & here and cluster.other.node_id in here


def test_a_slow_worker_does_not_hold_up_the_others(cluster, tmp_path):
    def build():
        def work(numbers):
            time.sleep(3 if numbers == [0] else 0.01)
            return [time.time()]

        return work

    done = [each.made[0] for each in build_executor(build, TWO).map([[n] for n in range(clusters.AHEAD * 2)])]
    assert max(done[1:]) < done[0]  # they were ready before it, and came after it


def test_what_the_work_raises_is_raised_here(cluster):
    def build():
        raise InputError("target.model 'x': no such folder")

    with pytest.raises(InputError, match="no such folder"):
        list(build_executor(build, TWO).map(GROUPS))


def test_workers_that_die_while_they_load_end_it_in_one_line(cluster):
    def build():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="3 workers died one after another while they loaded"):
        list(build_executor(build, TWO).map(GROUPS))


def test_another_version_in_a_worker_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(clusters, "versions", lambda: {**versions(), "torch": "0.1"})
    with pytest.raises(InputError, match=r"a worker has torch [2-9].*, and this process 0\.1; install the same"):
        list(build_executor(_squares(), TWO).map(GROUPS))
