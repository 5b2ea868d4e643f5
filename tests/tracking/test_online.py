"""Runs that go to a server as they arise, by the real client on loopback."""

import pytest
from tests.tracking.conftest import python

pytestmark = pytest.mark.slow

# Two stages in one process, of which the server refuses the second's run.
STAGES = """
import json, logging, os, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
from sidepipe.base.interruption import Preempted
from sidepipe.tracking import Content, Tracking
tracking = Tracking(mode="online", folder="runs", group="sizes", tags=["demo"])
try:
    with tracking.run("dpm", "aaa", {"dpm": {"num_train_images": 500}, "inputs": {}}) as run:
        run.log({"loss": 0.5}, 10)
        run.log({"loss": 0.25}, 20)
        run.send(lambda images: Content(summary={"dpm/epochs": 2.5}))
        raise Preempted("SIGTERM")
except Preempted:
    pass
with tracking.run("dpm", "refused", {}) as run:
    run.log({"loss": 0.125}, 10)
print(json.dumps(sorted(os.listdir("runs/wandb"))))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, server):
    server.refused.add("sizes-refused")
    return python(server, tmp_path_factory.mktemp("online"), STAGES)


def test_a_run_arrives_as_it_is(folders, server):
    run = server.runs["sizes-aaa"]
    assert server.unknown == []
    assert (run["groupName"], run["jobType"], run["tags"]) == ("sizes", "dpm", ["demo"])
    assert run["config"]["dpm"]["value"] == {"num_train_images": 500}
    rows = [(row["trainer/global_step"], row["dpm/loss"]) for row in run["history"]]
    assert rows == [(10, 0.5), (20, 0.25)]
    assert run["summary"]["dpm/epochs"] == 2.5


def test_a_stage_that_was_asked_to_stop_arrives_as_preempting(folders, server):
    assert (server.runs["sizes-aaa"]["preempting"], server.runs["sizes-aaa"]["exitcode"]) == (
        True,
        1,
    )


def test_a_run_that_the_server_refuses_is_left_to_make_sync(folders, server):
    assert set(server.runs) == {"sizes-aaa"}
    assert not [name for name in folders if name.startswith("offline-run-")]
