"""Secrets in storage options, environment, URIs and job files reach no lake, no message, no log and no report."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from jobs.config import parse_job
from pipeline.lake import LakeStore, open_lake
from schemas.errors import CamlakeError
from tests.fault_proxy import FaultProxy
from tests.jobs.outside import bare_environment, left_behind, written
from tests.s3_server import S3Server, S3Store
from tests.signed_images import PASSWORD, SIGNATURE, SignedImages, forms

Run = Callable[..., Result]

SECRETS = {
    "source key": "AKIASOURCE01",
    "source secret": "src/Sec+ret/0001",
    "model secret": "mdl/Sec+ret/0002",
    "output secret": "out/Sec+ret/0003",
    "output token": "TOKEN-of-the-output-0004",
    "environment": "env/Sec+ret/0005",
    "session": "SESSION-of-the-environment-0006",
    "password": PASSWORD,
    "signature": SIGNATURE,
}
NEEDLES = {name: forms(secret) for name, secret in SECRETS.items()}


def leaks(data: bytes, where: str) -> list[str]:
    return [f"{name} in {where}" for name, needles in NEEDLES.items() if any(needle in data for needle in needles)]


def lake_leaks(store: LakeStore) -> list[str]:
    """Secrets in the bytes of a lake's objects, and in what is compressed within the tables."""
    found: list[str] = []
    for entry in store.list():
        data = store.get(entry.path)
        found += leaks(data, entry.path)
        if entry.path.endswith(".parquet"):
            found += leaks(repr(pq.read_table(io.BytesIO(data)).to_pydict()).encode(), f"the rows of {entry.path}")
    return found


def folder_leaks(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [leak for path in files for leak in leaks(path.read_bytes(), str(path.relative_to(folder)))]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["environment"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS["session"])


def test_secrets_would_be_found() -> None:
    for name, secret in SECRETS.items():
        assert leaks(f"a:{secret}:b".encode(), "x") == [f"{name} in x"]
    assert leaks(SignedImages.header.encode(), "x") == ["password in x"]


def pictures(dataset: Path) -> dict[str, bytes]:
    with tarfile.open(dataset / "shards" / "scenes-000000.tar") as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".png")]
        return {f"/images/{i}.png": tar.extractfile(m).read() for i, m in enumerate(members)}  # type: ignore[union-attr]


@pytest.fixture
def server(dataset: Path) -> Iterator[SignedImages]:
    with SignedImages(pictures(dataset)) as running:
        yield running


def options(store: S3Store, key: str, secret: str, **more: Any) -> dict[str, Any]:
    return {**store.storage_options, "key": key, "secret": secret, **more}


@pytest.fixture
def secretive(document: dict[str, Any], dataset: Path, s3_store: S3Store, server: SignedImages) -> dict[str, Any]:
    """A job of which every store has secrets: a list of signed URLs, the weights and the lake in a bucket."""
    rows = [(server.signed(f"/images/{i}.png"), server.signed(f"/{i}")) for i in range(3)]
    rows += [(server.with_password(f"/images/{i}.png"), "x") for i in range(3, 6)]
    rows += [(server.signed("/gone.png"), "x"), (server.with_password("/gone-too.png"), "x")]
    text = io.StringIO()
    csv.writer(text).writerows([("uri", "page"), *rows])
    s3_store.put("images.csv", text.getvalue().encode())
    s3_store.put("net.safetensors", (dataset / "net.safetensors").read_bytes())
    source = options(s3_store, SECRETS["source key"], SECRETS["source secret"])
    weights = options(s3_store, "AKIAMODEL", SECRETS["model secret"])
    output = options(s3_store, "AKIAOUTPUT", SECRETS["output secret"], token=SECRETS["output token"])
    document["source"] = {
        "uri": s3_store.url("images.csv"),
        "format": "list",
        "attributes": ["page"],
        "unit_images": 4,
        "storage_options": source,
    }
    document["model"] |= {"weights": s3_store.url("net.safetensors"), "storage_options": weights}
    document["targets"] = "predicted"
    document["output"] = {"uri": s3_store.url("lake"), "storage_options": output}
    return document


def given(name: str, values: dict[str, Any], prefix: str = "") -> list[str]:
    """Storage options as a command takes them."""
    found: list[str] = []
    for key, value in values.items():
        nested = isinstance(value, dict)
        found += given(name, value, f"{prefix}{key}.") if nested else [f"{name}={prefix}{key}={value}"]
    return found


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray, whose sockets must have short names."""
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_secrets_everywhere(
    secretive: dict[str, Any],
    server: SignedImages,
    tmp_path: Path,
    short_folder: Path,
    camlake: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All commands; then no byte of the lake, of what was printed, of Ray's logs and of the sheet holds a secret."""
    job, bare = written(secretive, tmp_path), tmp_path / "bare"
    environ = bare_environment(bare)
    run = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "attribute", job, "--max-failed", "2"],
        capture_output=True,
        cwd=bare / "cwd",
        env={**environ, "RAY_TMPDIR": str(short_folder)},
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, (run.stdout + run.stderr).decode()
    # Ray keeps a token of its own in the home folder, and its session in RAY_TMPDIR.
    assert [name for name in left_behind(bare) if ".ray/" not in name] == [], "nothing is written but the lake"
    uri, output = secretive["output"]["uri"], secretive["output"]["storage_options"]
    found = leaks(run.stdout, "stdout") + leaks(run.stderr, "stderr") + lake_leaks(LakeStore(uri, output))
    assert list(short_folder.rglob("worker-*.err")), "Ray's logs are there"
    found += folder_leaks(short_folder)

    rows = open_lake(uri, output).images.to_table().to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["read_error"] * 2
    assert [row["uri"] for row in rows[:6]] == [server.plain(f"/images/{i}.png") for i in range(6)]
    assert rows[0]["page"] == server.plain("/0")
    assert server.plain("/gone.png") in rows[6]["error"]

    storage = given("--storage", output)
    reader = f"--source-storage=client_kwargs.headers.Authorization={server.header}"
    sheet = tmp_path / "sheet.png"
    caplog.set_level(logging.INFO)
    commands = {
        "attribute": [job, "--max-failed", "2", "--log-format", "json"],
        "plan": [job, "--sample", "8"],
        "status": [uri, *storage],
        "verify": [uri, *storage],
        "show": [uri, "--count", "6", "--cell", "64", "--output", sheet, *storage, reader],
    }
    for command, arguments in commands.items():
        result = camlake(command, *arguments)
        assert result.exit_code == 0, result.output
        found += leaks(result.output.encode(), f"the output of {command}")
    found += leaks(caplog.text.encode(), "the log") + leaks(sheet.read_bytes(), "the sheet")
    assert found == []


def _at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node = document
        for part in parents:
            node = node[part]
        node[last] = value(node[last]) if callable(value) else value

    return change


KEYED = f"s3://AKIAOUTPUT:{SECRETS['output secret']}@bucket"
FAILING: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no bucket of the source": (_at("source.uri", "s3://no-such-bucket-0/x.csv"), "no such bucket"),
    "no bucket of the weights": (_at("model.weights", "s3://no-such-bucket-0/w.pt"), "model.weights"),
    "no bucket of the lake": (_at("output.uri", "s3://no-such-bucket-0/lake"), "no such bucket"),
    "no file of the source": (_at("source.uri", lambda uri: uri.replace("images", "none")), "source.uri"),
    "no file of the weights": (_at("model.weights", lambda uri: uri.replace("net", "none")), "model.weights"),
    "an unknown option of the source": (_at("source.storage_options.secert", SECRETS["source secret"]), "source.uri"),
    "an unknown option of the weights": (_at("model.storage_options.secert", SECRETS["model secret"]), "model.weights"),
    "an unknown option of the lake": (_at("output.storage_options.secert", SECRETS["output secret"]), "secert"),
    "options that are a text": (_at("output.storage_options", SECRETS["output secret"]), "output.storage_options"),
    "a secret beside the options": (_at("output.secret", SECRETS["output secret"]), "output: unknown key 'secret'"),
    "a secret at the top": (_at("secret", SECRETS["output secret"]), "unknown key 'secret'"),
    "a part that is a URI": (_at("output", f"{KEYED}/lake"), "output"),
    "keys in source.uri": (_at("source.uri", f"{KEYED}/x.csv"), "source.uri: 's3://bucket/x.csv' is written with cred"),
    "keys in one of source.uri": (_at("source.uri", ["a.csv", f"{KEYED}/x.csv"]), "'s3://bucket/x.csv' is written"),
    "keys in model.weights": (_at("model.weights", f"{KEYED}/w.pt"), "model.weights: 's3://bucket/w.pt' is written"),
    "a signed URL of the weights": (
        _at("model.weights", f"https://host/w.pt?X-Amz-Signature={SIGNATURE}"),
        "model.weights: 'https://host/w.pt' is written with credentials in it",
    ),
    "keys in model.class_names": (_at("model.class_names", f"{KEYED}/n.txt"), "model.class_names: 's3://bucket/n.txt'"),
    "keys in output.uri": (_at("output.uri", f"{KEYED}/lake"), "output.uri: 's3://bucket/lake' is written with cred"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_run_that_fails_tells_no_secret(
    secretive: dict[str, Any], tmp_path: Path, camlake: Run, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change, message = FAILING[name]
    change(secretive)
    result = camlake("attribute", written(secretive, tmp_path))
    assert result.exit_code in (2, 3), result.output
    assert message in result.stderr
    assert "Traceback" not in result.output and result.stderr.count("\n") == 1
    assert leaks(result.output.encode(), "the output") + leaks(caplog.text.encode(), "the log") == []


@pytest.mark.parametrize("name", ["keys in source.uri", "a secret at the top", "an unknown option of the weights"])
def test_a_run_that_fails_tells_machines_no_secret(
    secretive: dict[str, Any], tmp_path: Path, camlake: Run, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change, message = FAILING[name]
    change(secretive)
    result = camlake("attribute", written(secretive, tmp_path), "--log-format", "json")
    assert result.exit_code == 2 and message in json.loads(result.stderr)["message"]
    assert leaks(result.output.encode(), "the output") + leaks(caplog.text.encode(), "the log") == []


@pytest.mark.parametrize("kind", ["denied", "expired", "error"])
def test_a_store_that_refuses_tells_no_secret(
    secretive: dict[str, Any],
    s3_server: S3Server,
    tmp_path: Path,
    camlake: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
) -> None:
    monkeypatch.setattr("pipeline.sources.retry.TRIES", 2)
    with FaultProxy(s3_server.endpoint) as proxy:
        proxy.add(kind, path="/lake", times=None)
        secretive["output"]["storage_options"]["client_kwargs"] = {"endpoint_url": proxy.endpoint}
        result = camlake("attribute", written(secretive, tmp_path))
        storage = given("--storage", secretive["output"]["storage_options"])
        others = [camlake(command, secretive["output"]["uri"], *storage) for command in ("status", "verify", "show")]
    for each in (result, *others):
        assert each.exit_code in (2, 3), each.output
        assert "Traceback" not in each.output
        assert leaks(each.output.encode(), "the output") == []
    assert leaks(caplog.text.encode(), "the log") == []


@pytest.mark.parametrize("command", ["status", "verify", "show"])
def test_keys_in_the_uri_of_a_lake_are_refused(command: str, camlake: Run) -> None:
    result = camlake(command, f"{KEYED}/lake")
    assert result.exit_code == 2
    assert "the lake's URI 's3://bucket/lake' is written with credentials in it" in result.stderr
    assert leaks(result.output.encode(), "the output") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", f"output.storage_options.secret='{SECRETS['output secret']}"],
        ["--set", f"={SECRETS['output secret']}"],
        ["--set", f"{SECRETS['output token']}"],
        ["--set", f"methods.7={SECRETS['output secret']}"],
        ["--set", f"max_failed.x.y={SECRETS['output secret']}"],
    ],
)
def test_wrong_overrides_tell_no_secret(
    document: dict[str, Any], tmp_path: Path, camlake: Run, arguments: list[str]
) -> None:
    document["max_failed"] = 1
    result = camlake("plan", written(document, tmp_path), *arguments)
    assert result.exit_code == 2 and "--set" in result.stderr
    assert leaks(result.output.encode(), "the output") == []


@pytest.mark.parametrize("option", [f"secret='{SECRETS['output secret']}", SECRETS["output token"], f"={PASSWORD}"])
def test_wrong_options_tell_no_secret(tmp_path: Path, camlake: Run, option: str) -> None:
    result = camlake("status", str(tmp_path), "--storage", option)
    assert result.exit_code == 2 and "--storage" in result.stderr
    assert leaks(result.output.encode(), "the output") == []


@pytest.mark.parametrize("value", [f"*{PASSWORD}", f"!{PASSWORD}", f"'{PASSWORD}", f"[{PASSWORD}", f"@{PASSWORD}"])
def test_yaml_that_does_not_parse_tells_no_secret(tmp_path: Path, camlake: Run, value: str) -> None:
    (tmp_path / "job.yaml").write_text(f"output:\n  storage_options:\n    secret: {value}\n")
    result = camlake("plan", tmp_path / "job.yaml")
    assert result.exit_code == 2 and "job.yaml', line " in result.stderr
    assert leaks(result.output.encode(), "the output") == []


def test_a_job_is_printed_without_its_secrets(secretive: dict[str, Any]) -> None:
    job = parse_job(secretive)
    assert leaks(f"{job!r} {job}".encode(), "the job") == []


def test_a_lake_that_cannot_be_opened_is_an_error_of_ours() -> None:
    for uri in (f"{KEYED}/lake", f"https://user:{PASSWORD}@host/lake"):
        with pytest.raises(CamlakeError) as told:
            open_lake(uri)
        assert leaks(str(told.value).encode(), "the message") == []
