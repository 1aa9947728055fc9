"""Hostile SQL gets one outcome each and changes nothing; dead workers are replaced and lose nothing."""

import ast
import hashlib
import itertools
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import hostile_sql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilr_jax.tasks import sqlbox, sqlworker
from ilr_jax.tasks.sqlbox import Box, Limits, Query

SMALL = Limits(steps=2_000_000, seconds=0.4, heap=64 * 2**20, rows=10_000, bytes=2**24)


def make(path, *statements):
    """A database of 200 rows in `t`, an empty table `empty`, and what the statements add."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE TABLE empty(x)")
        connection.executemany("INSERT INTO t VALUES(?, ?)", [(i, f"name {i}") for i in range(200)])
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


@pytest.fixture
def database(tmp_path):
    return make(tmp_path / "data" / "a.sqlite")


def tree(folder):
    """Every file below, with its content and its time."""
    return {
        path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def run(database, *queries, limits=SMALL, workers=1):
    return Box(limits, workers).run([Query(database, sql) for sql in queries])


def test_hostile_sql_gets_one_outcome_each_and_changes_nothing(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, honest = tree(tmp_path), "SELECT * FROM t"
    queries = [sql for hostile in hostile_sql.ALL for sql in (hostile, honest)]
    outcomes = run(database, *queries, workers=2)
    assert len(hostile_sql.ALL) >= 150 and len(outcomes) == len(queries) and tree(tmp_path) == before
    assert {outcome.rows for outcome in outcomes[1::2]} == {run(database, honest)[0].rows}
    found = dict(zip(hostile_sql.ALL, outcomes[::2], strict=True))
    assert {found[sql].status for sql in hostile_sql.WRITES + hostile_sql.SHADOWS + hostile_sql.FILES + hostile_sql.PRAGMAS} == {"error"}
    assert {found[sql].status for sql in hostile_sql.ENDLESS} <= {"timeout", "too large"}
    assert Counter(outcome.status for outcome in outcomes).keys() == {"ok", "error", "timeout", "too large"}


def test_limits_that_count_work_end_a_query_at_the_same_point_every_time(database):
    def count(n):
        return f"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c LIMIT {n}) SELECT count(*) FROM c"

    sizes = range(100_000, 250_000, 5_000)
    seen = [[outcome.status for outcome in run(database, *map(count, sizes), limits=Limits(steps=3_000_000), workers=w)] for w in (1, 3)]
    assert seen[0] == seen[1] == sorted(seen[0]) and set(seen[0]) == {"ok", "timeout"}


def test_a_query_that_runs_out_of_cpu_time_is_asked_again_alone(database, monkeypatch):
    asked = []
    ask = sqlbox.Worker.ask
    monkeypatch.setattr(sqlbox.Worker, "ask", lambda self, query: asked.append(query.sql) or ask(self, query))
    slow = "SELECT instr(printf('%.*c', 3000000, 'a'), printf('%.*c', 1500000, 'a') || 'b')"
    outcomes = run(database, slow, "SELECT 1", "SELECT 2")
    assert [outcome.status for outcome in outcomes] == ["timeout", "ok", "ok"] and "CPU" in outcomes[0].detail
    assert asked == [slow, "SELECT 1", "SELECT 2", slow]


def test_the_wall_clock_is_the_outer_bound(database, monkeypatch):
    monkeypatch.setattr(Limits, "wall", 0.2)
    start = time.monotonic()
    (outcome,) = run(database, hostile_sql.ENDLESS[0], limits=Limits(steps=10**12, seconds=1000.0))
    assert (outcome.status, outcome.detail) == ("timeout", "beyond the limit of time") and time.monotonic() - start < 20


@pytest.fixture
def processes(monkeypatch):
    """Every worker process that a test starts."""
    found, start = [], sqlbox._started
    monkeypatch.setattr(sqlbox, "_started", lambda limits: found.append(start(limits)) or found[-1])
    return found


def gone(processes):
    return all(process.returncode is not None for process in processes)


def test_workers_that_die_are_replaced_and_no_result_is_lost(database, processes, monkeypatch):
    queries = [f"SELECT name FROM t WHERE id = {i}" for i in range(60)]
    wanted, ask, turn, asked = run(database, *queries), sqlbox.Worker.ask, itertools.count(1), set()

    def stabbed(self, query):
        if query not in asked and next(turn) % 7 == 0 and self.process:
            self.process.kill()
            time.sleep(0.01)
        asked.add(query)
        return ask(self, query)

    monkeypatch.setattr(sqlbox.Worker, "ask", stabbed)
    assert run(database, *queries, workers=2) == wanted
    assert len(processes) > 8 and gone(processes)


def test_workers_killed_at_any_moment_leave_every_other_result_in_its_place(database, processes):
    queries = [f"SELECT count(*), {i} FROM t a, t b" for i in range(60)]
    wanted, done, rng = run(database, *queries), threading.Event(), random.Random(0)

    def killer():
        while not done.wait(rng.uniform(0, 0.1)):
            os.kill(processes[-1].pid, signal.SIGKILL) if processes[-1].returncode is None else None

    thread = threading.Thread(target=killer)
    thread.start()
    outcomes = run(database, *queries, workers=2)
    done.set()
    thread.join()
    assert len(outcomes) == len(queries) and gone(processes)
    for outcome, right in zip(outcomes, wanted, strict=True):  # one that was killed twice has no result, and says so
        assert outcome == right or (outcome.status, outcome.detail) == ("error", "the process that ran it ended with exit code -9")


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(database, monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(sqlbox, "WORKER", broken)
    with pytest.raises(OSError, match="did not start .exit code 3"):
        run(database, "SELECT 1")


def test_outcomes_are_remembered_until_the_database_changes(database, processes):
    box, query = Box(SMALL, 1), Query(database, "SELECT count(*) FROM t")
    first = box.run([query, query])
    assert box.run([query]) == first[:1] and first[0] == first[1] and len(processes) == 1
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM t")
        connection.commit()
    assert box.run([query]) != first[:1] and len(processes) == 2


def test_databases_that_cannot_be_used_are_all_named_and_none_is_made(database):
    missing, odd, open_one = (database.with_name(name) for name in ("missing.sqlite", "odd.sqlite", "open.sqlite"))
    odd.write_bytes(b"version https://git-lfs")
    open_one.write_bytes(database.read_bytes())
    open_one.with_name("open.sqlite-wal").write_bytes(b"x")
    before = tree(database.parent)
    with pytest.raises(ValueError) as caught:
        Box(SMALL).run([Query(path, "SELECT 1") for path in (missing, odd, open_one, database)])
    text = str(caught.value)
    assert f"{missing}: wanted a SQLite database there, found no file" in text and "b'version https://" in text
    assert "open.sqlite-wal lies beside it" in text and str(database) + ":" not in text and tree(database.parent) == before
    database.with_name("a.sqlite-journal").write_bytes(b"")
    with pytest.raises(ValueError, match="a.sqlite-journal lies beside it"):
        sqlbox.checked([database])


def test_a_path_with_odd_characters_is_that_path(tmp_path):
    path = make(tmp_path / "100% ? # ü" / "a b.sqlite")
    assert run(path, "SELECT count(*) FROM t")[0].status == "ok"


def test_no_queries_start_no_process(processes):
    assert Box(SMALL).run([]) == [] and processes == []


def test_the_clock_stands_still_and_the_dice_are_fixed(database):
    now = "SELECT current_timestamp, CURRENT_DATE, current_time, date('now'), datetime(), strftime('%s', 'NOW'), julianday(), time('now')"
    fixed = (
        "SELECT '2024-06-27 12:00:00', '2024-06-27', '12:00:00', '2024-06-27', '2024-06-27 12:00:00', '1719489600', 2460489.0, '12:00:00'"
    )
    told, meant = run(database, now, fixed)
    assert told.rows and told == meant
    bytes_too, day = run(database, "SELECT date(x'6e6f77'), datetime(CAST('now' AS BLOB))", "SELECT '2024-06-27', '2024-06-27 12:00:00'")
    assert bytes_too == day
    dice = "SELECT random(), hex(randomblob(8)), id FROM t ORDER BY random()"
    assert run(database, dice, limits=SMALL) == run(database, dice, limits=SMALL)


def test_json_is_read_as_a_table(database):
    read = "SELECT value FROM json_each('[3, 5]')", "SELECT atom FROM json_tree('{\"a\": [3, 5]}') WHERE atom IS NOT NULL"
    first, second, wanted = run(database, *read, "VALUES (3), (5)")
    assert first == second == wanted and wanted.status == "ok"


def test_no_key_of_the_environment_reaches_a_worker(database, monkeypatch, processes):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with sqlbox._crew(1, SMALL) as (worker,):
        assert worker.ask(Query(database, "SELECT 1")) == run(database, "SELECT 1")[0]
        assert worker.process and b"secret" not in Path(f"/proc/{worker.process.pid}/environ").read_bytes()


def test_other_times_are_computed_as_sqlite_does(database):
    calls = ("date(?)", "datetime(?, '+1 month')", "time(?)", "julianday(?)", "strftime('%Y %j %w', ?)", "date(?, 'weekday 0')")
    texts = ("2024-02-29", "2000-01-01 10:20:30", "12:30", "2451545", "nonsense", "", "nowhere")
    queries = [f"SELECT {call}".replace("?", f"'{text}'") for call in calls for text in texts]
    with closing(sqlite3.connect(":memory:")) as plain:
        values = [plain.execute(sql).fetchone()[0] for sql in queries]
    wanted = run(database, *(f"SELECT {'NULL' if value is None else repr(value)}" for value in values))
    assert run(database, *queries) == wanted and {outcome.status for outcome in wanted} == {"ok"}


def test_text_that_is_not_utf8_compares_by_its_bytes(tmp_path):
    path = make(tmp_path / "a.sqlite", "CREATE TABLE b(x)", "INSERT INTO b VALUES(CAST(x'ff41' AS TEXT)), (CAST(x'fe41' AS TEXT))")
    one, same, other = run(
        path, "SELECT x FROM b LIMIT 1", "SELECT min(x) FROM b WHERE x > 'ÿ' OR x = (SELECT x FROM b)", "SELECT x FROM b"
    )
    assert one.status == same.status == "ok" and len({one.rows, other.rows}) == 2


CELLS = st.one_of(
    *(st.none(), st.integers(-2, 2), st.sampled_from((0.0, -0.0, 1.0, 0.5, 2.0**60, 1e300, float("inf"))), st.just(2**60)),
    *(st.sampled_from(("", "1", "a", "None", "\udcff")), st.sampled_from((b"", b"1", b"a"))),
)
RESULTS = st.integers(0, 2).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), max_size=4))


@given(RESULTS, RESULTS)
def test_fingerprints_are_equal_exactly_where_python_finds_the_results_equal(a, b):
    one, two = (sqlworker.fingerprints(rows, 10, 10_000) for rows in (a, b))
    assert (one["rows"] == two["rows"]) == (set(a) == set(b))
    assert (one["bag"] == two["bag"]) == (Counter(a) == Counter(b))
    assert (one["order"] == two["order"]) == (a == b)


def test_the_worker_needs_the_standard_library_alone():
    tree = ast.parse(sqlbox.WORKER.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
