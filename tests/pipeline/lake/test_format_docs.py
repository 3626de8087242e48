"""Every block of docs/lake-format.md runs, and plain tools give what the lake holds."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import polars
import pytest

from pipeline.lake.store import LakeStore
from tests.pipeline.lake.helpers import build, hash_seed, make_result, picture, sink_for, unit_id

DOCS = Path(__file__).parents[3] / "docs" / "lake-format.md"
BLOCKS = re.findall(r"^```(python|sql)\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished lake in ``lake``, beside the shard that its pictures are in."""
    path = tmp_path_factory.mktemp("docs")
    build(LakeStore(str(path / "lake")), 1, uri=str(path / "x.tar"))
    (path / "x.tar").write_bytes(b"".join(picture(hash_seed(unit_id(0), i)) for i in range(5)))
    return path


def test_there_are_blocks_of_both_kinds() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("sql") >= 4
    assert kinds.count("python") >= 5
    assert DOCS.read_text().count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(BLOCKS)])
def test_block_runs(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    kind, code = BLOCKS[number]
    if kind == "python":
        exec(compile(code, f"{DOCS.name}, block {number}", "exec"), {"__name__": "docs"})
        return
    with duckdb.connect() as connection:
        rows = connection.sql(code).fetchall() if code.count(";") == 1 else connection.execute(code).fetchall()
    assert rows


def test_duckdb_agrees_with_the_commits_before_and_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = LakeStore(str(tmp_path / "lake"))
    manifest = build(store, 2, finish=False)
    store.delete(f"commits/{unit_id(1)}.json")  # its objects are an attempt's without a commit now
    (by_commit,) = (code for kind, code in BLOCKS if kind == "sql" and "commits" in code)
    with duckdb.connect() as connection:
        assert connection.execute(by_commit).fetchall() == [
            ("grad_cam", "layer4", 8),
            ("layer_cam", "layer3+layer4", 8),
            ("xgrad_cam", "layer4", 8),
        ]
    sink_for(store, manifest).write(make_result(unit_id(1), "a2"))
    from pipeline.lake.run import finalize

    finalize(store)
    with duckdb.connect() as connection:
        found = connection.sql("select count(*), count(entropy) from 'lake/maps/*.parquet'").fetchall()
        metadata = connection.sql(
            "select decode(value) from parquet_kv_metadata('lake/maps/*.parquet') where decode(key) = 'run_id'"
        ).fetchall()
    # Undefined entropies (of the zero and the non-finite maps) are null, not NaN.
    assert found[0][0] == 48
    assert 0 < found[0][1] < 48
    assert set(metadata) == {("run-1",)}
    frame = polars.scan_parquet("lake/maps/*.parquet").filter(polars.col("all_zero")).collect()
    assert frame["vmax"].to_list() == [0.0] * 6
    assert frame["entropy"].null_count() == 6


def test_no_column_name_is_reserved_in_sql(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column can be named without quotes."""
    monkeypatch.chdir(folder)
    with duckdb.connect() as connection:
        for table in ("maps", "images"):
            source = f"'lake/{table}/*.parquet'"
            names = [row[0] for row in connection.sql(f"describe select * from {source}").fetchall()]
            assert len(connection.sql(f"select {', '.join(names)} from {source}").columns) == len(names)
