"""What the columns of other people's data mean: five shapes, found by their columns, and conversations as plain text.

Every shape comes to a prompt and, where the data has one, an answer: the last turn of the assistant; all before it is the prompt. Earlier
turns are rendered with the words that `tokenizer.PROMPT` puts around a question, so that the whole reads as one dialogue. Not here:
whether an answer is trusted (`jsonl`).
From: the formats in which TRL, LLaMA-Factory (alpaca, sharegpt) and the Hub's chat data sets keep demonstrations.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

Values = Mapping[str, Any]
Turn = tuple[str, str]
COMMON = ("id", "reference", "trusted", "system", "database")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "developer": "system"}


class Shape(NamedTuple):
    """A way to keep demonstrations: the columns of prompt and answer, others that may be there, and how a row becomes turns."""

    prompt: str
    answer: str
    others: tuple[str, ...]
    turns: Callable[[Values, "Shape"], list[Turn]]


def _plain(row: Values, shape: Shape) -> list[Turn]:
    answer = [("assistant", text(row, shape.answer))] if shape.answer in row else []
    return [*_system(row), ("user", text(row, shape.prompt)), *answer]


def _prompted(row: Values, shape: Shape) -> list[Turn]:
    """Prompt and completion, each a text or a list of messages."""
    sides = [(name, role) for name, role in ((shape.prompt, "user"), (shape.answer, "assistant")) if name in row]
    parts = [_messages(row, name) if isinstance(row[name], list) else [(role, text(row, name))] for name, role in sides]
    return [*_system(row), *(turn for part in parts for turn in part)]


def _conversation(row: Values, shape: Shape) -> list[Turn]:
    return [*_system(row), *_messages(row, shape.prompt)]


def _alpaca(row: Values, shape: Shape) -> list[Turn]:
    turns = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise ValueError(f"history: wanted a list of [instruction, answer], got {_said(history)}")
    for number, pair in enumerate(history):
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise ValueError(f"history {number}: wanted [instruction, answer], two texts; got {pair!r:.80}")
        turns += zip(("user", "assistant"), pair, strict=True)
    parts = [text(row, shape.prompt), optional(row, "input")]
    asked = ("user", "\n\n".join(part for part in parts if part))
    return [*turns, asked, *([("assistant", text(row, shape.answer))] if shape.answer in row else [])]


SHAPES = {
    "question+answer": Shape("question", "answer", (), _plain),
    "prompt+completion": Shape("prompt", "completion", (), _prompted),
    "messages": Shape("messages", "messages", (), _conversation),
    "alpaca": Shape("instruction", "output", ("input", "history"), _alpaca),
    "sharegpt": Shape("conversations", "conversations", (), _conversation),
}
NAMES = tuple(dict.fromkeys([*COMMON, *(name for shape in SHAPES.values() for name in (shape.prompt, shape.answer, *shape.others))]))


def column_map(text: str) -> dict[str, str]:
    """Our name -> column of the data, from `question=query, answer=response`; an empty column (`id=`) leaves ours unread. ValueError."""
    found: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, mark, column = (side.strip() for side in part.partition("="))
        if not mark or name not in NAMES or name in found:
            near = get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and name not in NAMES else ""
            raise ValueError(f"task.columns: wanted OURS=COLUMN, each once, OURS one of {', '.join(NAMES)}; got {part!r}{hint}")
        found[name] = column
    return found


def renamed(row: Values, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row by our names; what `columns` does not speak of keeps its own, what is not in the row stays out."""
    wanted = {name: columns.get(name, name) for name in NAMES}
    return {name: row[column] for name, column in wanted.items() if column and column in row}


def shape_of(names: Collection[str], columns: Mapping[str, str]) -> Shape:
    """The shape of rows with these of our names: one with prompt and answer, else one with a prompt alone; the map's word decides.

    Raises ValueError where there is none, or where there are several.
    """
    known = {name: shape for name, shape in SHAPES.items() if shape.prompt in names}
    full = {name: shape for name, shape in known.items() if shape.answer in names} or known
    meant = {name: shape for name, shape in full.items() if any(columns.get(part) for part in (shape.prompt, shape.answer))} or full
    if len(meant) != 1:
        looks = f"the columns fit {' and '.join(meant)}" if meant else "the columns fit no shape"
        raise ValueError(
            f"{looks}: wanted {'; '.join(f'{name} ({_columns(shape)})' for name, shape in SHAPES.items())}; "
            "say which column is what, e.g. task.columns='question=query,answer=response'"
        )
    return next(iter(meant.values()))


def _columns(shape: Shape) -> str:
    return ", ".join(dict.fromkeys((shape.prompt, shape.answer, *shape.others)))


def read(row: Values, shape: Shape, answered: bool = True) -> tuple[str, str | None]:
    """(prompt, answer) of a row by our names; not `answered` leaves the answer's column unread. ValueError with the reason."""
    wanted = dict.fromkeys([shape.prompt, shape.answer] if answered else [shape.prompt])
    if not row.keys() >= wanted.keys():
        raise ValueError(f"wanted {' and '.join(wanted)} as in the other rows, got {', '.join(row) or 'none of our columns'}")
    if not answered:
        row = {name: value for name, value in row.items() if name == shape.prompt or name != shape.answer}
    turns = shape.turns(row, shape)
    empty = [number for number, (name, said) in enumerate(turns) if name != "system" and not said.strip()]
    if empty:
        last = answered and empty[0] == len(turns) - 1
        raise ValueError("the answer is empty" if last else f"the text of the {turns[empty[0]][0]} is empty")
    if not answered:
        return render(turns), None
    if not turns or turns[-1][0] != "assistant":
        raise ValueError(f"wanted the assistant's answer as the last turn, got {_whose(turns[-1:])}")
    return render(turns[:-1]), turns[-1][1]


def render(turns: Sequence[Turn]) -> str:
    """Turns as one prompt: a system text first, then the user's; later ones under USER: and ASSISTANT:. ValueError for another order."""
    system = [said for name, said in turns[:1] if name == "system"]
    rest = turns[len(system) :]
    if not rest or rest[0][0] != "user":
        raise ValueError(f"wanted the user's turn first, got {_whose(rest)}")
    if any(name == "system" for name, _ in rest):
        raise ValueError("wanted the system's turn at the beginning only")
    if rest[-1][0] != "user":
        raise ValueError("wanted the user's turn before the answer, got the assistant's")
    opening = "\n\n".join([*(said for said in system if said.strip()), rest[0][1]])
    return "".join([opening, *(f"\n\n{name.upper()}:\n{said}" for name, said in rest[1:])])


def text(row: Values, name: str) -> str:
    """A column that must hold text. ValueError for anything else."""
    if not isinstance(row[name], str):
        hint = f'; put it in quotes, "{row[name]}"' if type(row[name]) in (int, float) else ""
        raise ValueError(f"{name}: wanted text, got {_said(row[name])}{hint}")
    return row[name]


def optional(row: Values, name: str) -> str | None:
    """A column that may hold text: None where it is missing, null or blank."""
    return None if row.get(name) is None or not text(row, name).strip() else row[name]


def _whose(turns: Sequence[Turn]) -> str:
    return f"the {turns[0][0]}'s" if turns else "none"


def _said(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.60}"


def _system(row: Values) -> list[Turn]:
    said = optional(row, "system")
    return [] if said is None else [("system", said)]


def _content(message: Values, name: str) -> str:
    """A message's text, which may come in parts, {type: text, text}."""
    parts = message[name]
    if not isinstance(parts, list):
        return text(message, name)
    if other := [part for part in parts if not isinstance(part, Mapping) or part.get("type") != "text" or "text" not in part]:
        raise ValueError(f"{name}: wanted parts of text alone, got {other[0]!r:.80}")
    return "\n".join(text(part, "text") for part in parts)


def _messages(row: Values, name: str) -> list[Turn]:
    """The turns of a list of messages, {role, content} or {from, value}."""
    if not isinstance(row[name], list):
        raise ValueError(f"{name}: wanted a list of messages, got {_said(row[name])}")
    return list(_turns(row[name], name))


def _turns(messages: Sequence[Any], name: str) -> Iterator[Turn]:
    for number, message in enumerate(messages):
        keys = next(
            (keys for keys in (("role", "content"), ("from", "value")) if isinstance(message, Mapping) and keys[0] in message), None
        )
        if keys is None or keys[1] not in message:
            raise ValueError(f"{name} {number}: wanted role and content (or from and value), got {message!r:.80}")
        role = message[keys[0]]
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{name} {number}: wanted a turn of user, assistant or system, got {role!r:.40}")
        try:
            yield ROLES[role], _content(message, keys[1])
        except ValueError as error:
            raise ValueError(f"{name} {number}: {error}") from error
