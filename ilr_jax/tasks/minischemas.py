"""The words of minisql: four small databases of one shape, and the kinds of questions about them. Nothing is drawn or run here.

Each has a table of things (name, group, size) and one of events that point to a thing (place, amount); SQL is in lower case, as the
embedded models' tokenizer takes fewer tokens for it.
"""

from typing import NamedTuple


class Schema(NamedTuple):
    """Names of tables and columns, and what stands in them. `lowest` and `highest` bound a thing's number, `most` an event's."""

    name: str
    one: str
    label: str
    labels: tuple[str, ...]
    group: str
    groups: tuple[str, ...]
    number: str
    lowest: int
    highest: int
    many: str
    key: str
    place: str
    places: tuple[str, ...]
    amount: str
    most: int

    @property
    def tables(self) -> tuple[str, str]:
        """The CREATE statements."""
        return (
            f"CREATE TABLE {self.one}(id integer primary key, {self.label} text, {self.group} text, {self.number} int)",
            f"CREATE TABLE {self.many}({self.key} int references {self.one}(id), {self.place} text, {self.amount} int)",
        )


NAMES = ("Tom", "Ben", "Sam", "Max", "Leo", "Omar", "Paul", "Ravi", "Ann", "Mia", "Eva", "Lily", "Zoe", "Nina", "Rosa", "Ada")
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Delhi")
THINGS = ("apple", "pear", "plum", "lemon", "cup", "plate", "fork", "spoon", "pen", "book", "card", "stamp", "ball", "kite")
TITLES = ("Dawn", "Rain", "Stone", "River", "Fire", "Glass", "Snow", "Wolf", "Moon", "Salt", "Gold", "Dust", "Fog", "Pine", "Sand")

SCHEMAS = (
    Schema(
        *("shop", "items", "name", THINGS, "kind", ("fruit", "kitchen", "paper", "toy"), "price", 2, 60),
        *("sales", "item", "city", CITIES, "amount", 30),
    ),
    Schema(
        *("school", "pupils", "name", NAMES, "town", ("Ash", "Birch", "Cedar", "Elm"), "age", 6, 18),
        *("marks", "pupil", "subject", ("art", "music", "math", "sport"), "points", 15),
    ),
    Schema(
        *("library", "books", "title", TITLES, "genre", ("crime", "travel", "poem", "history"), "pages", 40, 600),
        *("loans", "book", "reader", NAMES[:6], "days", 40),
    ),
    Schema(
        *("league", "players", "name", NAMES, "team", ("red", "blue", "green", "white"), "goals", 0, 50),
        *("games", "player", "place", CITIES, "minutes", 90),
    ),
)

JOIN = "{one} join {many} on {many}.{key} = {one}.id"
KINDS = (  # (SQL, wordings)
    (
        "select {label} from {one} where {group} = '{g}'",
        ("Which {one} have the {group} {g}?", "List the {label} of all {one} with {group} {g}.", "Show me the {one} of {group} {g}."),
    ),
    (
        "select {label} from {one} where {number} {sign} {n}",
        ("Which {one} have {number} {over} {n}?", "Name all {one} whose {number} is {over} {n}.", "Find {one} with {number} {over} {n}."),
    ),
    (
        "select {label} from {one} where {group} = '{g}' and {number} {sign} {n}",
        ("Which {one} of {group} {g} have {number} {over} {n}?", "List {one} with {group} {g} and {number} {over} {n}."),
    ),
    (
        "select count(*) from {many} where {place} = '{p}'",
        ("How many {many} have the {place} {p}?", "Count the {many} with {place} {p}.", "What is the number of {many} of {place} {p}?"),
    ),
    (
        "select count(*) from {many} where {amount} {sign} {a}",
        ("How many {many} have {amount} {over} {a}?", "Count the {many} whose {amount} is {over} {a}."),
    ),
    (
        "select {fn}({number}) from {one} where {group} = '{g}'",
        ("What is the {total} {number} of {one} with {group} {g}?", "Tell me the {total} {number} among {one} of {group} {g}."),
    ),
    (
        "select {label} from {one} order by {number} {way}, {label} limit {k}",
        ("Which {k} {one} have the {end} {number}?", "Name the {k} {one} with the {end} {number}.", "Show {k} {one} of {end} {number}."),
    ),
    (
        "select {label} from {one} where {group} = '{g}' order by {number} {way}, {label}",
        ("List the {one} with {group} {g}, {end} {number} first.", "Sort the {one} of {group} {g} from the {end} {number} on."),
    ),
    (
        "select {group}, {fn}({number}) from {one} group by {group}",
        ("What is the {total} {number} for each {group} of {one}?", "Give the {total} {number} of {one} by {group}."),
    ),
    (
        "select {place}, {fn}({amount}) from {many} where {amount} {sign} {a} group by {place}",
        ("For each {place}, what is the {total} {amount} of {many} with {amount} {over} {a}?",)
        + ("Of {many} with {amount} {over} {a}, give the {total} {amount} by {place}.",),
    ),
    (
        "select {place} from {many} group by {place} having sum({amount}) > {s}",
        ("Which {place} has more than {s} {amount} in all?", "Find each {place} whose {many} have a sum of {amount} over {s}."),
    ),
    (
        "select distinct {one}.{label} from " + JOIN + " where {many}.{place} = '{p}'",
        ("Which {one} have {many} with {place} {p}?", "Name {one} that have any {many} of {place} {p}."),
    ),
    (
        "select {fn}({many}.{amount}) from " + JOIN + " where {one}.{group} = '{g}'",
        (
            "What is the {total} {amount} in {many} of {one} with {group} {g}?",
            "For {one} of {group} {g}, give the {total} {amount} of {many}.",
        ),
    ),
    (
        "select {one}.{label} from " + JOIN + " group by {one}.id order by sum({many}.{amount}) {way}, {one}.{label} limit {k}",
        ("Which {k} {one} have the {end} sum of {amount}?", "Name the {k} {one} whose {many} have the {end} {amount} in all."),
    ),
    (
        "select {label} from {one} where id not in (select {key} from {many} where {place} = '{p}')",
        ("Which {one} have no {many} with {place} {p}?", "List {one} without any {many} of {place} {p}."),
    ),
    (
        "select {label} from {one} where {number} {sign} (select avg({number}) from {one} where {group} = '{g}')",
        ("Which {one} have {number} {over} the average of {group} {g}?", "Find {one} with {number} {over} the mean for {group} {g}."),
    ),
)
