"""SQL as text: the statement in a model's answer, and whether a statement orders its rows. Nothing is run here.

From: the lexical rules of SQLite (sqlite.org/lang_keywords.html, lang_comment.html): '...', "...", `...`, [...], -- and /* */.
"""

import re
from collections.abc import Iterator

FENCE = re.compile(r"```(?:sqlite\b|sql\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Longest first; what is not closed goes on to the end, so that no character is looked at twice.
TOKEN = re.compile(
    r"""'(?:[^']|'')*+(?:'|\Z) | "(?:[^"]|"")*+(?:"|\Z) | `(?:[^`]|``)*+(?:`|\Z) | \[[^\]]*+(?:\]|\Z)
    | --[^\n]*+ | /\*(?:[^*]|\*(?!/))*+(?:\*/|\Z) | \w++ | \s++ | .""",
    re.VERBOSE | re.DOTALL,
)


def statement(answer: str) -> str:
    """The SQL that an answer is taken to give: its first statement, without the semicolon; empty if there is none.

    If the answer holds a fence (```sql or ```), that is the content of the first one, else the whole answer; what follows the first
    semicolon outside strings, names and comments, such as an invented next turn, is no part of it.
    """
    fence = FENCE.search(answer)
    text = (fence[1] if fence else answer).strip()
    end = next((place for place, token in _tokens(text) if token == ";"), len(text))
    return text[:end].strip()


def ordered(sql: str) -> bool:
    """Whether the statement has an ORDER BY of its own, outside all parentheses, so that the order of its rows means something."""
    depth, before = 0, ""
    for _, token in _tokens(sql):
        depth += (token == "(") - (token == ")")
        word = token.lower()
        if depth == 0 and before == "order" and word == "by":
            return True
        before = before if _silent(token) else word
    return False


def _tokens(sql: str) -> Iterator[tuple[int, str]]:
    return ((found.start(), found[0]) for found in TOKEN.finditer(sql))


def _silent(token: str) -> bool:
    return token.isspace() or token.startswith(("--", "/*"))
