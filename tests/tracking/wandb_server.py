"""A W&B server on loopback, as small as can be: keeps what the client and `wandb sync` send.

An unknown operation is answered with 400 and noted: 500 would be tried again for half a minute.
"""

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT, KEY = "lab", "sidepipe", "0" * 40
WHEN = "2026-01-01T00:00:00Z"
PLACE = {"id": "P", "internalId": "1", "name": PROJECT, "entity": {"id": "E", "name": ENTITY}}


class WandbServer(ThreadingHTTPServer):
    """What arrived.

    runs: of each id what was upserted, `history` (a line a row), `summary`, `exitcode`,
    `preempting`. artifacts: by name, with the uploaded manifest. uses: (run, artifact's name).
    views: by id. uploads: bytes by path. received: all bodies of requests. refused: run ids that
    get 400. unknown: operations that got it. loses: run ids whose history is not kept.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.uses: list[tuple[str, str]] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.received: list[str] = []
        self.refused: set[str] = set()
        self.loses: set[str] = set()
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that are done reset their connections."""

    def stream(self, run_id: str, content: dict[str, Any]) -> None:
        """A run's history, summary and end."""
        run = self.runs[run_id]
        for name, chunk in (content.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl" and run_id not in self.loses:
                run["history"][chunk["offset"] :] = lines
            if name == "wandb-summary.json":
                run["summary"] = lines[-1]
        run |= {name: content[name] for name in ("exitcode", "preempting") if name in content}

    def put(self, path: str, body: bytes) -> None:
        """A file; of an artifact, its manifest."""
        self.uploads[path] = body
        if path.startswith("/manifests/"):
            self.artifacts[path.split("/")[2]]["manifest"] = json.loads(body)

    def bucket(self, run: dict[str, Any]) -> dict[str, Any]:
        """A run as queries show it."""
        rows = run["history"]
        last = max((row["_step"] for row in rows), default=-1)
        return {
            "id": f"R{run['name']}",
            "name": run["name"],
            "project": PLACE,
            "projectId": "1",
            "displayName": run["displayName"],
            "config": json.dumps(run["config"]),
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "historyKeys": {"lastStep": last, "keys": {}},
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run["summary"]),
            "tags": run.get("tags") or [],
            # Without "t" the client takes the run for one that never started.
            "wandbConfig": '{"t": {}}',
            "systemMetrics": "{}",
            "state": "finished",
            "group": run.get("groupName"),
            "jobType": run["jobType"],
            "createdAt": WHEN,
            **dict.fromkeys(("notes", "description", "sweepName", "commit")),
            "readOnly": False,
            "heartbeatAt": WHEN,
            "user": {},
        }

    def version(self, name: str) -> dict[str, Any]:
        """An artifact as queries show it."""
        artifact = self.artifacts[name]
        sequence = {"__typename": "ArtifactSequence", "name": name, "project": PLACE}
        alias = {"__typename": "ArtifactAlias", "id": "L", "alias": "latest"}
        return {
            "__typename": "Artifact",
            "id": name,
            "artifactSequence": sequence,
            "versionIndex": 0,
            "artifactType": {"name": artifact["type"]},
            "tags": [],
            "state": "COMMITTED",
            "size": 0,
            "digest": artifact["digest"],
            "fileCount": 0,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": "c",
            "createdAt": WHEN,
            "aliases": [{**alias, "artifactCollection": sequence}],
            "updatedAt": WHEN,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "metadata": "{}",
            **dict.fromkeys(("description", "historyStep")),
        }


Operation = Callable[[WandbServer, dict[str, Any]], dict[str, Any]]


def viewer(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    user = {"id": "V", "entity": ENTITY, "username": "somebody", "email": "", "flags": "{}"}
    return {"viewer": {**user, "teams": {"edges": []}}}


def resume_status(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(asked["name"])
    return {"model": {**PLACE, "bucket": run and server.bucket(run)}}


def upsert_run(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    known = sent["name"] in server.runs
    run = server.runs.setdefault(sent["name"], {"history": [], "summary": {}, "config": {}})
    run |= {name: value for name, value in sent.items() if value is not None}
    run["config"] = json.loads(sent["config"]) if sent.get("config") else run["config"]
    return {"upsertBucket": {"bucket": server.bucket(run), "inserted": not known}}


def run_files(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    place = f"{server.url}/files/{sent['run']}"
    files = [{"name": f, "uploadUrl": f"{place}/{f}"} for f in sent["files"]]
    return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}


def one_run(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(asked["name"])
    return {"project": {"run": run and server.bucket(run)}}


def create_artifact(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    new = sent["input"]
    name = new["artifactCollectionName"]
    kept = {"type": new["artifactTypeName"], "run": new["runName"], "digest": new["digest"]}
    kept["metadata"] = new.get("metadata")
    server.artifacts[name] = kept
    shown = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": shown}}


def artifact_manifest(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    url = f"{server.url}/manifests/{sent['artifactID']}"
    file = {"id": "F", "uploadUrl": url, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}


def commit_artifact(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": ""}}}


def artifact_type(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    return {"project": {"artifact": None}}


def artifact_by_name(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    name = asked["name"].partition(":")[0]
    if name not in server.artifacts:
        return {"project": {"artifactCollectionMembership": None}}
    version = server.version(name)
    member = {"__typename": "ArtifactCollectionMembership", "id": "M", "versionIndex": 0}
    member |= {"createdAt": WHEN, "aliases": version["aliases"], "artifact": version}
    member["artifactCollection"] = version["artifactSequence"]
    return {"project": {"artifactCollectionMembership": member}}


def input_artifacts(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    names = [name for run, name in server.uses if run == asked["run"]]
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    edges = [{"node": server.version(name)} for name in names]
    artifacts = {"totalCount": len(names), "pageInfo": page, "edges": edges}
    return {"project": {"run": {"artifacts": artifacts}}}


def use_artifact(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    server.uses.append((sent["runName"], sent["artifactID"]))
    return {"useArtifact": {"artifact": {"id": sent["artifactID"]}}}


def views(server: WandbServer, asked: dict[str, Any]) -> dict[str, Any]:
    name = asked.get("viewName")
    edges = [{"node": v} for v in server.views.values() if name in (None, v["name"])]
    return {"project": {"allViews": {"edges": edges}}}


def upsert_view(server: WandbServer, sent: dict[str, Any]) -> dict[str, Any]:
    key = sent.get("id") or f"view{len(server.views)}"
    kept = {name: sent[name] for name in ("name", "displayName", "spec")}
    server.views[key] = {"id": key, **kept}
    return {"upsertView": {"view": server.views[key], "inserted": "id" not in sent}}


OPERATIONS: dict[str, Operation] = {
    "Viewer": viewer,
    "GetDefaultEntity": viewer,
    "ServerFeaturesQuery": lambda server, asked: {"serverInfo": {"features": []}},
    "OrganizationCoreWeaveOrganizationID": lambda server, asked: {"entity": {"organization": None}},
    "RunResumeStatus": resume_status,
    "UpsertBucket": upsert_run,
    "CreateRunFiles": run_files,
    "Run": one_run,
    "RunHistoryKeys": one_run,
    "CreateArtifact": create_artifact,
    "CreateArtifactManifest": artifact_manifest,
    "CommitArtifact": commit_artifact,
    "ArtifactType": artifact_type,
    "ArtifactMembershipByName": artifact_by_name,
    "RunInputArtifacts": input_artifacts,
    "UseArtifact": use_artifact,
    "Views": views,
    "View": views,
    "UpsertView2": upsert_view,
}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a test says what matters."""

    def do_POST(self) -> None:
        content = json.loads(self._body())
        if self.path != "/graphql":
            self.server.stream(self.path.split("/")[4], content)
            return self._send(200, {})
        found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
        name = found[1] if found else content["query"]
        if name not in OPERATIONS:
            self.server.unknown.append(name)
            return self._send(400, {"errors": [{"message": f"unknown operation {name}"}]})
        variables = content.get("variables") or {}
        if variables.get("name") in self.server.refused:
            return self._send(400, {"errors": [{"message": "refused"}]})
        data = OPERATIONS[name](self.server, variables)
        return self._send(200, {"data": data})

    def do_PUT(self) -> None:
        self.server.put(self.path, self._body())
        self._send(200, {})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append(body.decode(errors="replace"))
        return body

    def _send(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that answers on loopback until the block ends."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
