"""Which text of an answer is its SQL, and which SQL orders its rows."""

import time

import pytest

from ilr_jax.tasks.sqltext import ordered, statement


@pytest.mark.parametrize(
    ("answer", "sql"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  SELECT 1 ;\n", "SELECT 1"),
        ("SELECT 1; That is the answer.", "SELECT 1"),
        ("SELECT 1;\n\nUSER:\nAnd now?", "SELECT 1"),
        ("SELECT 1; DROP TABLE t", "SELECT 1"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("Here it is:\n```sql\nSELECT 1;\n```\nDone; really.\n```sql\nSELECT 2\n```", "SELECT 1"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```SQLite\nSELECT 1", "SELECT 1"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("SELECT ';' || \"a;b\", `c;d`, [e;f] FROM t; rest", "SELECT ';' || \"a;b\", `c;d`, [e;f] FROM t"),
        ("SELECT 'it''s; fine' -- not; here\n/* nor; here */ ; x", "SELECT 'it''s; fine' -- not; here\n/* nor; here */"),
        ("SELECT 'unclosed; x", "SELECT 'unclosed; x"),
        ("Sorry, I cannot", "Sorry, I cannot"),
        ("", ""),
        (" ; ", ""),
        ("```sql\n```", ""),
    ],
)
def test_the_first_statement_counts(answer, sql):
    assert statement(answer) == sql


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n -- really\n /* yes */ by a", True),
        ("WITH c AS (SELECT 1) SELECT * FROM c ORDER BY 1 LIMIT 2", True),
        ("SELECT 1 UNION SELECT 2 ORDER BY 1", True),
        ("SELECT * FROM (SELECT a FROM t ORDER BY a)", False),
        ("WITH c AS (SELECT a FROM t ORDER BY a) SELECT * FROM c", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'x ORDER BY y', \"order by\", [order by] FROM t -- ORDER BY a", False),
        ("SELECT a AS `order`, by FROM t", False),
        ("SELECT a FROM border BYE", False),
        ("", False),
    ],
)
def test_only_an_order_by_of_its_own_orders_a_statement(sql, wanted):
    assert ordered(sql) is wanted


@pytest.mark.parametrize("part", ["'", "''", '"', "`", "[", "/*", "--", "```", "(", ";", " ", "order by ", "\n"])
def test_degenerate_answers_are_read_in_linear_time(part):
    start = time.process_time()
    statement(part * 100_000)
    ordered(part * 100_000)
    assert time.process_time() - start < 2
