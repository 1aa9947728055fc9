"""The words of the embedded task: names, things and the sentences of every kind of step. Nothing is computed here."""

NAMES = {
    "he": ("Tom", "Ben", "Sam", "Max", "Leo", "Omar", "Paul", "Ravi", "Jack", "Noah", "Finn", "Hugo"),
    "she": ("Ann", "Mia", "Eva", "Lily", "Zoe", "Nina", "Rosa", "Ada", "Kate", "Ivy", "Ella", "Ruth"),
}
THINGS = (
    *("apples", "books", "cards", "coins", "pens", "shells", "eggs", "plums", "toys", "stamps", "beads", "nuts"),
    *("balls", "cakes", "roses", "pears", "marbles", "stickers", "cookies", "buttons", "stones", "pencils", "lemons", "tickets"),
)
BOXES = ("boxes", "bags", "jars", "baskets", "crates", "packs")
TIMES = {2: "twice as many", 3: "three times as many", 4: "four times as many", 5: "five times as many"}
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}

START = (
    "{name} has {n} {unit}.",
    "{name} starts with {n} {unit}.",
    "There are {n} {unit} on the table of {name}.",
    "On Monday {name} counts {n} {unit}.",
    "{name} collected {n} {unit} last year.",
)
MORE = (
    "{pro} buys {n} more.",
    "A friend gives {name} {n} more {unit}.",
    "Then {they} finds {n} {unit}.",
    "The next day {they} gets another {n}.",
    "{n} {unit} are added.",
)
LESS = (
    "{pro} gives {n} away.",
    "Then {they} loses {n} {unit}.",
    "{n} of them break.",
    "{pro} sells {n} {unit} to a neighbour.",
    "After that {they} throws out {n}.",
)
EARN = ("Then {they} earns {n} dollars more.", "{pro} finds {n} dollars in a coat.", "A prize adds {n} dollars.")
SPEND = ("{pro} spends {n} dollars on lunch.", "Then {they} pays a bill of {n} dollars.", "{pro} gives {n} dollars to {other}.")
GROW = ("A week later {they} has {times}.", "After a month there are {times}.", "The number of {unit} grows to {k} times what it was.")
PRICE = ("Each one is sold for {k} dollars.", "{pro} sells all of them at {k} dollars each.", "Each of the {unit} is worth {k} dollars.")
SHARE = (
    "{pro} shares them equally among {k} children, and one of them is {other}.",
    "They are divided equally between {k} people, and {other} is one of them.",
)
PACK = ("{pro} packs them into {boxes} of {k}.", "They are put into {boxes}, {k} in each.")
KEEP = ("{pro} keeps only {part} of the {unit}.", "After a storm {part} of the {unit} are left.")
BUNCH_MORE = (
    "{pro} buys {a} {boxes} with {b} {unit} in each.",
    "Then {a} friends bring {b} {unit} each.",
    "For {a} days {they} adds {b} a day.",
)
BUNCH_LESS = ("{pro} gives {b} {unit} to each of {a} friends.", "For {a} days {they} uses {b} {unit} a day.")
BOTH_TIMES = ("{other} has {times}. They put all of it together.", "{other} brings {times}, and they count everything.")
BOTH_MORE = (
    "{other} has {n} more than that. They put all of it together.",
    "{other} brings {n} more than {name}, and they count everything.",
)
ASIDE = ("{name} is {n} years old.", "The shop closes in {n} minutes.", "{other} lives {n} miles away.")
ASK_ONE = ("How many {unit} does {holder} have now?", "How many {unit} are with {holder} in the end?")
ASK = (*ASK_ONE, "How many {unit} are there in the end?", "What is the number of {unit} at the end?", "How many {unit} is that?")
