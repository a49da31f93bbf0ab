"""
The layer on its way to the Serverless Application Repository: `sam build`, `sam package` and `sam publish` by the SAM
CLI, and what arrives. No emulator knows that repository: a server here keeps what S3 and it are given.
"""

import io
import json
import re
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "layers" / "plungepool"
PAGE = (ROOT / "docs" / "attach.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.timeout(900)  # a build is in the set-up of a test


class Loader(yaml.SafeLoader):
    """Takes CloudFormation's short forms, for their values."""


Loader.add_multi_constructor("!", lambda _loader, _tag, node: str(node.value))


@dataclass
class Received:
    """The parts of S3's objects by bucket and key, and the requests to the repository."""

    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    applications: list[dict[str, Any]] = field(default_factory=list)

    def at(self, url: str) -> bytes:
        """The object that an address of S3's names, s3://… or https://…"""
        parts = self.parts[re.sub(r"^s3://|^https?://[^/]*/", "", url)]
        return b"".join(parts[number] for number in sorted(parts))


class Server(BaseHTTPRequestHandler):
    """Takes what the SAM CLI sends: S3's HEAD and PUT, the repository's POST."""

    received: Received

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def body(self) -> bytes:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return sent
        rest, content = sent, b""
        while size := int(rest.split(b"\r\n", 1)[0].split(b";")[0], 16):
            rest = rest.split(b"\r\n", 1)[1]
            content, rest = content + rest[:size], rest[size + 2 :]
        return content

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.reply(200 if "/" not in path or path in self.received.parts else 404)

    def do_GET(self) -> None:
        self.reply(404)

    def do_PUT(self) -> None:
        content = self.body()
        address = urlsplit(self.path)
        part = int(parse_qs(address.query).get("partNumber", ["1"])[0])
        self.received.parts.setdefault(address.path.strip("/"), {})[part] = content
        self.reply(200, ETag=f'"{md5(content).hexdigest()}"')

    def do_POST(self) -> None:
        sent = self.body()
        if "uploads" in self.path or "uploadId" in self.path:  # what is large comes in parts
            self.reply(200, b"<Result><UploadId>1</UploadId></Result>")
            return
        assert urlsplit(self.path).path == "/applications", self.path
        self.received.applications.append(json.loads(sent))
        arn = "arn:aws:serverlessrepo:eu-west-1:123456789012:applications/plungepool-layer"
        self.reply(201, json.dumps({"applicationId": arn}).encode())


@pytest.fixture(scope="module")
def received() -> Iterator[tuple[str, Received]]:
    kept = Received()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Kept", (Server,), {"received": kept, "protocol_version": "HTTP/1.1"})
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def published(
    received: tuple[str, Received],
    run_sam: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Received:
    """What the commands of docs/attach.md have sent, with folders of the test's for what they write."""
    address, kept = received
    scratch = tmp_path_factory.mktemp("repository")
    build, packaged = scratch / "build", scratch / "packaged.yaml"
    commands = re.findall(r"^sam (?:build|package|publish)\b.*$", section(), re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["build", "package", "publish"]
    places = {
        "build": ["--template", LAYER / "template.yaml", "--build-dir", build, "--cache-dir", scratch / "cache"],
        "package": ["--template", build / "template.yaml"],
        "publish": ["--region", "eu-west-1"],
    }
    for command in commands:
        words = command.replace("packaged.yaml", str(packaged)).split()
        result = run_sam(*words, *places[words[1]], endpoint=address)
        assert result.returncode == 0, result.stdout + result.stderr
    return kept


def section() -> str:
    """The part of the page about the repository."""
    return re.split(r"^## ", PAGE.split("## Serverless Application Repository\n")[1], flags=re.MULTILINE)[0]


def test_publish_sends_what_the_repository_requires(published: Received) -> None:
    """One application, by the metadata of the layer's template, with its licence and its page."""
    [application] = published.applications
    metadata = yaml.load((LAYER / "template.yaml").read_text(), yaml.BaseLoader)["Metadata"]
    [described] = metadata.values()
    sent = {name[0].upper() + name[1:]: value for name, value in application.items()}
    files = {"LicenseUrl": "LICENSE", "ReadmeUrl": "README.md"}
    assert {name: value for name, value in described.items() if name not in files} == {
        name: sent[name] for name in described.keys() - files.keys()
    }
    for name, file in files.items():
        assert published.at(sent[name]) == (LAYER / file).read_bytes()


def test_published_template_holds_a_layer_and_no_path(published: Received) -> None:
    """Its layer is an object of S3, the zip of what was built, and no path of the building machine is in it."""
    [application] = published.applications
    template = application["templateBody"]
    assert str(ROOT) not in template
    content = yaml.load(template, Loader)["Resources"]["PlungepoolLayer"]["Properties"]["ContentUri"]
    with zipfile.ZipFile(io.BytesIO(published.at(content))) as layer:
        names = set(layer.namelist())
    assert {"python/plungepool/__init__.py", "sbom/plungepool.cdx.json"} <= names


def test_consumer_reads_an_output_that_the_template_has(published: Received) -> None:
    """The template on the page takes the application by the name and parameter, and the output, that it has."""
    [application] = published.applications
    there = yaml.load(application["templateBody"], Loader)
    [block] = re.findall(r"```yaml\n(.*?)```", section(), re.DOTALL)
    resources = yaml.load(block, Loader)["Resources"]
    [nested] = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::Serverless::Application"]
    assert nested["Location"]["ApplicationId"].endswith(f":applications/{application['name']}")
    assert nested["Location"]["SemanticVersion"] == application["semanticVersion"]
    assert nested["Parameters"].keys() <= there["Parameters"].keys()
    read = set(re.findall(r"Plungepool\.Outputs\.(\w+)", block))
    assert read
    assert read <= there["Outputs"].keys()
