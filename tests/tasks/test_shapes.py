"""Shapes of demonstrations: found by their columns or by the map, and read into one prompt and one answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.tasks import shapes
from ilr_jax.tokenizer import PROMPT

TALK = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
RENDERED = "a\n\nASSISTANT:\nb\n\nUSER:\nc"


def chat(turns, keys=("role", "content"), names=None):
    return [dict(zip(keys, ((names or {}).get(name, name), said), strict=True)) for name, said in turns]


def read(row, columns=""):
    mapped = shapes.column_map(columns)
    row = shapes.renamed(row, mapped)
    shape = shapes.shape_of(row.keys(), mapped)
    return shapes.read(row, shape, shape.answer in row)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"question": "q", "answer": "a", "more": 7}, ("q", "a")),
        ({"prompt": "q", "completion": "a"}, ("q", "a")),
        ({"prompt": chat(TALK[:3]), "completion": chat(TALK[3:])}, (RENDERED, "d")),
        ({"prompt": chat(TALK[:1]), "completion": chat(TALK[1:])}, (RENDERED, "d")),
        ({"prompt": chat(TALK[:3]), "completion": "d"}, (RENDERED, "d")),
        ({"messages": chat(TALK)}, (RENDERED, "d")),
        ({"messages": chat([("system", "s"), *TALK])}, ("s\n\n" + RENDERED, "d")),
        ({"messages": chat(TALK), "prompt": "what the talk began with"}, (RENDERED, "d")),
        ({"instruction": "i", "input": "x", "output": "o"}, ("i\n\nx", "o")),
        ({"instruction": "i", "input": "", "output": "o", "system": None, "history": None}, ("i", "o")),
        ({"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}, ("s\n\n" + RENDERED, "d")),
        ({"conversations": chat(TALK, ("from", "value"), {"user": "human", "assistant": "gpt"})}, (RENDERED, "d")),
        ({"conversations": chat(TALK, ("from", "value")), "system": "s"}, ("s\n\n" + RENDERED, "d")),
        ({"conversations": chat(TALK)}, (RENDERED, "d")),
        ({"question": "q"}, ("q", None)),
    ],
)
def test_shapes_are_found_by_their_columns(row, wanted):
    assert read(row) == wanted


@pytest.mark.parametrize(
    ("row", "columns", "wanted"),
    [
        ({"query": "q", "response": "a"}, "question=query, answer=response", ("q", "a")),
        ({"answer": "the long one", "question": "q", "final": "a"}, "answer=final", ("q", "a")),
        ({"dialogue": chat(TALK)}, "messages=dialogue", (RENDERED, "d")),
        ({"question": "q", "answer": "a", "messages": chat(TALK)}, "messages=messages", (RENDERED, "d")),
        ({"question": "q", "answer": "a", "messages": chat(TALK)}, "messages=", ("q", "a")),
        ({"instruction": "i", "input": "left out", "output": "o"}, "input=", ("i", "o")),
    ],
)
def test_a_map_says_which_column_is_what(row, columns, wanted):
    assert read(row, columns) == wanted


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("question", "wanted OURS=COLUMN.*got 'question'"),
        ("qestion=q", "got 'qestion=q'; did you mean 'question'"),
        ("answer=a,answer=b", "each once.*got 'answer=b'"),
    ],
)
def test_a_map_that_cannot_be_read_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        shapes.column_map(columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "the columns fit no shape: wanted question.answer .question, answer.; .*task.columns="),
        ({"question": "q", "answer": "a", "prompt": "p", "completion": "c"}, "the columns fit question.answer and prompt.completion"),
        ({"question": None, "answer": "a"}, "question: wanted text, got null"),
        ({"question": "q", "answer": 7}, "answer: wanted text, got int 7"),
        ({"question": " \n", "answer": "a"}, "the text of the user is empty"),
        ({"question": "q", "answer": " "}, "the answer is empty"),
        ({"instruction": "i", "output": "o", "history": [["a"]]}, "history 0: wanted .instruction, answer."),
        ({"instruction": "i", "output": "o", "input": 3}, "input: wanted text, got int 3"),
        ({"messages": "hello"}, "messages: wanted a list of messages, got str"),
        ({"messages": []}, "last turn, got none"),
        ({"messages": ["hello"]}, "messages 0: wanted role and content"),
        ({"messages": [{"role": "user"}]}, "messages 0: wanted role and content"),
        ({"messages": chat([("user", "q"), ("tool", "t")])}, "messages 1: wanted a turn of user, assistant or system, got 'tool'"),
        ({"messages": chat([("user", "q"), ("assistant", None)])}, "messages 1: content: wanted text, got null"),
        ({"messages": chat([("user", [{"type": "image"}]), ("assistant", "a")])}, "messages 0: content: wanted parts of text alone, got"),
        ({"messages": chat([("user", [{"type": "text", "text": 1}]), ("assistant", "a")])}, "messages 0: text: wanted text, got int"),
        ({"messages": [{"role": ["user"], "content": "q"}]}, r"messages 0: wanted a turn of user, assistant or system, got \['user'\]"),
        ({"messages": [{"role": {}, "content": "q"}]}, "messages 0: wanted a turn of user, assistant or system, got {}"),
        ({"instruction": "i", "output": "o", "history": 5}, "history: wanted a list of .instruction, answer., got int 5"),
        ({"messages": chat([("user", "q"), ("assistant", "")])}, "the answer is empty"),
        ({"messages": chat(TALK[:3])}, "wanted the assistant's answer as the last turn, got the user's"),
        ({"messages": chat(TALK[1:])}, "wanted the user's turn first, got the assistant's"),
        ({"messages": chat([("assistant", "a")])}, "wanted the user's turn first, got none"),
        ({"messages": chat([*TALK[:2], ("assistant", "a")])}, "the user's turn before the answer"),
        ({"messages": chat([*TALK[:1], ("system", "s"), *TALK[:2]])}, "the system's turn at the beginning only"),
        ({"prompt": chat(TALK), "completion": "e"}, "the user's turn before the answer"),
    ],
)
def test_what_makes_no_demonstration_says_why(row, message):
    with pytest.raises(ValueError, match=message):
        read(row)


def test_a_rendered_dialogue_reads_on_in_the_words_of_the_tokenizer():
    assert PROMPT.format(question=shapes.render(TALK[:3])) == "USER:\na\n\nASSISTANT:\nb\n\nUSER:\nc\n\nASSISTANT:\n"


SAID = st.text(min_size=1).filter(str.strip)
PAIRS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.none() | SAID)
def test_every_shape_of_one_dialogue_is_the_same_demonstration(pairs, system):
    turns = [turn for asked, said in pairs for turn in (("user", asked), ("assistant", said))]
    opened = [("system", system)] * (system is not None) + turns
    asked, answer = pairs[-1]
    rows = [
        {"messages": chat(opened)},
        {"messages": chat(turns), "system": system},
        {"conversations": chat(opened, ("from", "value"), {"user": "human", "assistant": "gpt"})},
        {"prompt": chat(opened[:-1]), "completion": answer},
        {"prompt": chat(opened[:1]), "completion": chat(opened[1:])},
        {"instruction": asked, "output": answer, "system": system, "history": [list(pair) for pair in pairs[:-1]]},
    ]
    if len(pairs) == 1:
        rows += [{"question": asked, "answer": answer, "system": system}, {"prompt": asked, "completion": answer, "system": system}]
    read_as = {read(row) for row in rows}
    assert len(read_as) == 1
    ((prompt, said),) = read_as
    assert said == answer and prompt.endswith(asked) and prompt.startswith(system or pairs[0][0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from([*shapes.ROLES, "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(shapes.NAMES), JSON, max_size=4), st.booleans())
def test_whatever_a_row_holds_it_makes_a_demonstration_or_says_why_not(row, answered):
    try:
        prompt, answer = shapes.read(row, shapes.shape_of(row, {}), answered)
        assert prompt and (answer is None) == (not answered)
    except ValueError as error:
        assert str(error)
