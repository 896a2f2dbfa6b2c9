"""Small servers of this machine that answer as W&B and the Hugging Face hub do, and keep what they are sent."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answering(ThreadingHTTPServer):
    """A server with its memory: `seen` are the requests, `kept` what they left."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.seen: list[tuple[str, Any]] = []
        self.kept: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[Answering]:
    with Answering(handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Json(BaseHTTPRequestHandler, ABC):
    """Reads JSON (chunked or packed, too), answers JSON."""

    protocol_version = "HTTP/1.1"
    server: Answering

    def do_HEAD(self) -> None:
        self.reply(b"")

    def do_PUT(self) -> None:
        self._body()
        self.reply(b"")

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        body = self._body()
        try:
            self.answer(json.loads(body))
        except ValueError:
            self.answer(body)

    @abstractmethod
    def answer(self, asked: Any) -> None:
        """Reply to a request whose body was read; None where there is none."""

    def reply(self, content: Any, code: int = 200) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunk(self) -> bytes:
        found = self.rfile.read(int(self.rfile.readline().strip(), 16))
        self.rfile.readline()
        return found

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Wandb(Json):
    """W&B: `kept` has the history lines of every run by its id, and under "view" the report that was saved."""

    def answer(self, asked: Any) -> None:
        if self.path == "/graphql":
            return self.reply({"data": self._graphql(asked["query"], asked.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], asked.get("files", {}).get("wandb-history.jsonl"))
        return self.reply({"exitcode": None, "limits": {}})

    def _stream(self, run: str, history: Any) -> None:
        if history:
            self.server.kept[run][history["offset"] :] = map(json.loads, history["content"])

    def _graphql(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        self.server.seen.append((query, asked))
        project = {"id": "p", "name": "subliminal", "entity": {"id": "e", "name": "me"}}
        if "upsertView" in query:
            self.server.kept["view"] = asked
            return {"upsertView": {"view": self._view(), "inserted": True}}
        if "SpecificReport" in query:
            return {"view": self._view()}
        if "upsertBucket" in query:
            lines = self.server.kept.setdefault(asked["name"], [])
            bucket = {"id": "b", "name": asked["name"], "displayName": "", "historyLineCount": len(lines)}
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": not lines}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.address}/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query:
            return {"model": project | {"bucket": self._known(asked["name"])}}
        if "projects" in query or "Projects" in query:
            page = {"endCursor": "", "hasNextPage": False}
            node = {
                "id": "p",
                "name": "subliminal",
                "entityName": "me",
                "createdAt": "",
                "isBenchmark": False,
                "user": None,
            }
            return {"models": {"edges": [{"node": node, "cursor": ""}], "pageInfo": page}}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _view(self) -> dict[str, Any]:
        saved = self.server.kept["view"]
        project = {"id": "p", "name": saved["projectName"], "entityName": "me"}
        about = {"id": "Vmlldzox", "name": "v", "displayName": saved["displayName"], "description": "", "type": "runs"}
        return about | {"project": project, "spec": saved["spec"]}

    def _known(self, name: str) -> dict[str, Any] | None:
        if not self.server.kept.get(name):
            return None
        lines = self.server.kept[name]
        counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(lines[-1])]), "eventsTail": "[]", "config": "{}"}
        return (
            {"id": "b", "name": name, "displayName": name, "summaryMetrics": "{}", "wandbConfig": '{"t": 1}'}
            | counts
            | tails
        )


class Hub(Json):
    """The hub: `kept` has every committed file by its path; the token "refused" may not write."""

    def answer(self, asked: Any) -> None:
        self.server.seen.append((self.path, asked))
        if "refused" in self.headers.get("Authorization", ""):
            return self.reply({"error": "Forbidden"}, 403)
        if self.path == "/api/repos/create":
            return self.reply({"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})
        if "/preupload/" in self.path:
            found = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked["files"]]
            return self.reply({"files": found})
        if "/tree/" in self.path:
            files = [(path, len(content)) for path, content in self.server.kept.items()]
            return self.reply([{"type": "file", "oid": "0" * 40, "size": size, "path": path} for path, size in files])
        if "/commit/" in self.path:
            for line in map(json.loads, asked.splitlines()):
                if line["key"] == "deletedFile":
                    del self.server.kept[line["value"]["path"]]
                if line["key"] == "file":
                    self.server.kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.reply({"commitOid": "0" * 40, "commitUrl": f"{self.server.address}/me/x/commit/{'0' * 40}"})
        return self.reply({"errors": [], "warnings": []})


class Repository(Json):
    """The hub with one repository: `kept` has its files; every request's path is `seen`."""

    def do_HEAD(self) -> None:
        self.answer(None)

    def answer(self, asked: Any) -> None:
        self.server.seen.append((f"{self.command} {self.path}", asked))
        name, files, commit = self.path.rsplit("/", 1)[-1], self.server.kept, "1" * 40
        if self.path.startswith("/api/models/some/model"):
            about = {"id": "some/model", "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            tree = [{"type": "file", "oid": "0" * 40, "size": len(text), "path": file} for file, text in files.items()]
            return self.reply(tree if "/tree/" in self.path else about)
        if name not in files:
            return self.reply({"error": "Entry not found"}, 404)
        self.send_response(200)
        for header, value in {"ETag": f'"{name}"', "X-Repo-Commit": commit}.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(files[name])))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(files[name])
        return None
