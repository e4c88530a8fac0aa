"""A stand-in for the Hugging Face Hub: what huggingface_hub asks for to create a repository, and to upload and download files."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_local"
LARGE = (".safetensors", ".onnx", ".pth")
"""Files that are uploaded by LFS, as on the real Hub."""


class Hub:
    """The state of a hub: the repositories, with their files, and every request."""

    def __init__(self):
        self.repositories, self.private, self.objects, self.requests = {}, {}, {}, []
        self.refused = None
        """The number of a request that is answered with an error, by a part of its path and the status."""

    def answer(self, handler, method, path, body):
        """The status, the content and the headers of an answer."""
        self.requests.append((method, path))
        if self.refused and self.refused[0] in path:
            return self.refused[1], {"error": "refused"}, {}
        lfs = re.fullmatch(r"/objects/(\w+)", path)
        if lfs and method == "PUT":
            self.objects[lfs[1]] = body
            return 200, {}, {}
        if handler.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/whoami-v2":
            return 200, {"name": "jane", "type": "user", "auth": {}}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}, {}
            self.repositories[name] = {".gitattributes": b""}
            self.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}", "name": name}, {}
        return self.answer_repository(method, path, body)

    def answer_repository(self, method, path, body):
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?$", path)
        name, rest = found[1], found[2] or ""
        files = self.repositories.get(name)
        if files is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if rest in ("", "/revision/main"):
            return 200, {"id": name, "sha": "0" * 40, "siblings": [{"rfilename": each} for each in files]}, {}
        if rest.startswith("/tree/main"):
            return 200, [{"type": "file", "path": each, "size": len(data), "oid": "0" * 40} for each, data in files.items()], {}
        if rest == "/preupload/main":
            asked = [each["path"] for each in json.loads(body)["files"]]
            modes = {each: "lfs" if each.endswith(LARGE) else "regular" for each in asked}
            return 200, {"files": [{"path": k, "uploadMode": v, "shouldIgnore": False} for k, v in modes.items()]}, {}
        if rest == "/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            uploads = [{**each, "actions": {"upload": {"href": f"{self.url}/objects/{each['oid']}"}}} for each in objects]
            return 200, {"transfer": "basic", "objects": uploads}, {}
        if rest == "/commit/main":
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/{name}/commit/0", "commitOid": "0" * 40}, {}
        wanted = rest.removeprefix("/resolve/main/")
        if wanted not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, files[wanted], {"X-Repo-Commit": "0" * 40, "ETag": f'"{hashlib.sha1(files[wanted]).hexdigest()}"'}


@contextmanager
def running_hub():
    """A hub that answers under `hub.url`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, content, headers = hub.answer(self, self.command, self.path.partition("?")[0], body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in {"content-length": str(len(data)), "content-type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815 (the names of http.server)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
