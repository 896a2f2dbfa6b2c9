"""Arithmetic word problems of our own: a question, a worked solution of two to four steps, a whole-number answer.

Every problem follows from a seed and an index. A step is one operation on whole numbers, so that a solution can be
checked line by line.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}
NAMES = (
    "Amira", "Bruno", "Chiara", "Dmitri", "Elin", "Farid", "Greta", "Hugo", "Imani", "Jonas", "Katya", "Leo", "Mina",
    "Nadia", "Oscar", "Priya", "Quentin", "Rosa", "Samir", "Tessa", "Umar", "Vera", "Wanda", "Yusuf", "Zita",
)  # fmt: skip
THINGS = (
    "stickers", "marbles", "postcards", "buttons", "stamps", "coins", "candles", "badges", "pencils", "bricks",
    "beads", "magnets", "ribbons", "shells", "tickets",
)  # fmt: skip
GOODS = (
    ("notebook", "notebooks"), ("mug", "mugs"), ("lamp", "lamps"), ("poster", "posters"), ("puzzle", "puzzles"),
    ("scarf", "scarves"), ("clock", "clocks"), ("basket", "baskets"), ("teapot", "teapots"), ("brush", "brushes"),
)  # fmt: skip
PLACES = ("theatre", "cinema", "concert hall", "lecture room", "stadium", "circus tent")
TRIPS = (("bus", "drives"), ("train", "runs"), ("boat", "sails"), ("van", "drives"), ("ferry", "sails"))


@dataclass(frozen=True)
class Step:
    """One line of a solution: what is computed, and the operation with its whole-number result."""

    what: str
    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        """The value of the operation."""
        return OPERATIONS[self.sign](self.left, self.right)

    def __str__(self) -> str:
        return f"{self.what}: {self.left} {self.sign} {self.right} = {self.result}."


@dataclass(frozen=True)
class Problem:
    """A question with the steps that solve it."""

    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The result of the last step."""
        return self.steps[-1].result


class Story:
    """A problem while it is told: sentences, steps, and the random numbers behind both."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.sentences, self.steps = draw, list[str](), list[Step]()

    def say(self, text: str) -> None:
        """One more sentence of the question."""
        self.sentences.append(text)

    def step(self, what: str, left: int, sign: str, right: int) -> int:
        """One more line of the solution; returns its result."""
        self.steps.append(Step(what, left, sign, right))
        return self.steps[-1].result

    def done(self, question: str) -> Problem:
        """The problem, with the question at its end."""
        return Problem(" ".join([*self.sentences, question]), tuple(self.steps))


def problem(seed: int, index: int, steps_min: int, steps_max: int) -> Problem:
    """The problem of a seed and an index, solved in `steps_min` to `steps_max` steps (2 to 4)."""
    draw = random.Random(f"problem:{seed}:{index}")
    count = draw.randint(steps_min, steps_max)
    return draw.choice(STRUCTURES)(Story(draw), count)


# --------------------------------------------------------------------------- structures


def collection(story: Story, count: int) -> Problem:
    """Something is owned, then added to, given away, multiplied: one step each."""
    draw = story.draw
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    held = draw.randint(12, 60)
    story.say(f"{name} has {held} {things}.")
    for turn in range(count):
        chosen = draw.choice((_gains, _gives, _grows) if turn else (_gains, _gives))
        held = (chosen if held > 3 else _gains)(story, name, things, held)
    return story.done(f"How many {things} does {name} have now?")


def _gains(story: Story, name: str, things: str, held: int) -> int:
    more = story.draw.randint(3, 40)
    wording = story.draw.choice(("finds {n} more", "gets {n} more as a present", "buys another {n}"))
    story.say(f"{name} {wording.format(n=more)}.")
    return story.step(f"{things.capitalize()} with the new ones", held, "+", more)


def _gives(story: Story, name: str, things: str, held: int) -> int:
    fewer = story.draw.randint(1, held - 2)
    wording = story.draw.choice(("gives {n} to a friend", "loses {n} on the way", "sells {n} at a fair"))
    story.say(f"Then {name} {wording.format(n=fewer)}.")
    return story.step(f"{things.capitalize()} that are left", held, "-", fewer)


def _grows(story: Story, name: str, things: str, held: int) -> int:
    times = story.draw.randint(2, 4)
    word = {2: "twice", 3: "three times", 4: "four times"}[times]
    story.say(f"A month later {name} has {word} as many.")
    return story.step(f"{things.capitalize()} a month later", held, "*", times)


def shopping(story: Story, count: int) -> Problem:
    """Prices times pieces, added up, and change from a note."""
    draw = story.draw
    name, ((one, many), (other, others)) = draw.choice(NAMES), draw.sample(GOODS, 2)
    pieces, price = draw.randint(2, 9), draw.randint(2, 12)
    story.say(f"A shop sells every {one} for {price} dollars. {name} takes {pieces} {many}.")
    spent = story.step(f"Price of the {many}", pieces, "*", price)
    if count == 4:
        more, price = draw.randint(2, 6), draw.randint(3, 15)
        story.say(f"{name} also takes {more} {others} at {price} dollars each.")
        extra = story.step(f"Price of the {others}", more, "*", price)
        spent = story.step("Price of everything", spent, "+", extra)
    elif count == 3:
        price = draw.randint(3, 20)
        story.say(f"{name} also takes one {other} for {price} dollars.")
        spent = story.step("Price of everything", spent, "+", price)
    paid = spent + draw.randint(1, 40)
    story.say(f"{name} hands over {paid} dollars.")
    story.step("Change", paid, "-", spent)
    return story.done("How many dollars come back?")


def journey(story: Story, count: int) -> Problem:
    """Speed times hours, one leg or two, and what is left of the way."""
    draw = story.draw
    vehicle, moves = draw.choice(TRIPS)
    hours, speed = draw.randint(2, 6), draw.randint(20, 90)
    story.say(f"A {vehicle} {moves} for {hours} hours at {speed} kilometres an hour.")
    covered = story.step("First part", hours, "*", speed)
    if count == 4:
        hours, speed = draw.randint(1, 4), draw.randint(20, 90)
        story.say(f"After a break it goes on for {hours} hours at {speed} kilometres an hour.")
        second = story.step("Second part", hours, "*", speed)
        covered = story.step("Both parts", covered, "+", second)
    elif count == 3:
        more = draw.randint(5, 80)
        story.say(f"After a break it covers another {more} kilometres.")
        covered = story.step("Both parts", covered, "+", more)
    whole = covered + draw.randint(5, 150)
    story.say(f"The whole way is {whole} kilometres long.")
    story.step("What is left", whole, "-", covered)
    return story.done("How many kilometres are left?")


def seats(story: Story, count: int) -> Problem:
    """Rows of seats, of which some are taken, sold or lie in a second block."""
    draw = story.draw
    place, rows, each = draw.choice(PLACES), draw.randint(5, 20), draw.randint(6, 24)
    story.say(f"A {place} has {rows} rows of {each} seats.")
    free = story.step("Seats in rows", rows, "*", each)
    if count >= 3:
        more = draw.randint(4, 40)
        story.say(f"There are {more} further seats on a balcony.")
        free = story.step("Seats with the balcony", free, "+", more)
    if count == 4:
        broken = draw.randint(1, 9)
        story.say(f"Of all the seats, {broken} are broken.")
        free = story.step("Seats that can be used", free, "-", broken)
    guests = draw.randint(1, free)
    story.say(f"In the evening {guests} guests sit down, each on a seat that is not broken.")
    story.step("Free seats", free, "-", guests)
    return story.done("How many usable seats stay free?")


def wages(story: Story, count: int) -> Problem:
    """Hours times days times an hourly wage, and what is spent of it."""
    draw = story.draw
    name, hours, days = draw.choice(NAMES), draw.randint(3, 8), draw.randint(2, 6)
    story.say(f"{name} works {hours} hours a day on {days} days a week.")
    worked = story.step("Hours a week", hours, "*", days)
    rate = draw.randint(9, 30)
    story.say(f"An hour pays {rate} dollars.")
    earned = story.step("Wage of a week", worked, "*", rate)
    if count >= 3:
        bonus = draw.randint(10, 90)
        story.say(f"This week there is a bonus of {bonus} dollars.")
        earned = story.step("With the bonus", earned, "+", bonus)
    if count == 4:
        rent = draw.randint(10, earned - 1)
        story.say(f"{name} spends {rent} dollars of it.")
        story.step("What is left", earned, "-", rent)
        return story.done(f"How many dollars does {name} keep?")
    return story.done(f"How many dollars does {name} get for the week?")


def sharing(story: Story, count: int) -> Problem:
    """Packs that are put together and dealt out evenly."""
    draw = story.draw
    name, things, heirs = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 6)
    packs, size = draw.randint(2, 9), heirs * draw.randint(1, 4)
    story.say(f"{name} opens {packs} packs of {size} {things}.")
    total = story.step(f"{things.capitalize()} in the packs", packs, "*", size)
    if count >= 3:
        more = heirs * draw.randint(1, 6)
        story.say(f"{more} more lie on the table.")
        total = story.step(f"{things.capitalize()} together", total, "+", more)
    story.say(f"All of them are dealt out evenly to {heirs} children.")
    each = story.step("A child's share", total, "/", heirs)
    if count == 4:
        gone = draw.randint(1, each)
        story.say(f"Later one of the children gives {gone} away.")
        story.step("What this child keeps", each, "-", gone)
        return story.done(f"How many {things} does this child keep?")
    return story.done(f"How many {things} does each child get?")


def ages(story: Story, count: int) -> Problem:
    """Ages that follow from one another, and their sum or difference years later."""
    draw = story.draw
    first, second, third = draw.sample(NAMES, 3)
    age, older = draw.randint(4, 15), draw.randint(2, 15)
    story.say(f"{first} is {age} years old. {second} is {older} years older than {first}.")
    elder = story.step(f"Age of {second}", age, "+", older)
    last, name = elder, second
    if count >= 3:
        times = draw.randint(2, 3)
        story.say(f"{third} is {'twice' if times == 2 else 'three times'} as old as {second}.")
        last, name = story.step(f"Age of {third}", elder, "*", times), third
    if count == 4:
        both = story.step(f"Age of {first} and {third} together", age, "+", last)
        years = draw.randint(2, 9)
        story.step(f"Both together with {years} years on both sides", both, "+", 2 * years)
        return story.done(f"How old will {first} and {third} be together in {years} years?")
    story.step(f"Age of {first} and {name} together", age, "+", last)
    return story.done(f"How old are {first} and {name} together?")


def baking(story: Story, count: int) -> Problem:
    """Trays of pieces, some sold, the others packed into boxes."""
    draw = story.draw
    name, trays, boxes = draw.choice(NAMES), draw.randint(2, 6), draw.randint(2, 6)
    each = boxes * draw.randint(2, 6)
    story.say(f"{name} bakes {trays} trays with {each} rolls each.")
    left = story.step("Rolls from the trays", trays, "*", each)
    if count >= 3:
        sold = boxes * draw.randint(1, trays * each // boxes - 1)
        story.say(f"{sold} of them are sold at once.")
        left = story.step("Rolls that are left", left, "-", sold)
    story.say(f"{'They' if count == 2 else 'The others'} go into {boxes} boxes, equally many in each.")
    inside = story.step("Rolls in a box", left, "/", boxes)
    if count == 4:
        more = draw.randint(1, 5)
        story.say(f"Then {more} sugar buns are put on top of every box's rolls.")
        story.step("Pieces in a box", inside, "+", more)
        return story.done("How many pieces are in a box?")
    return story.done("How many rolls are in a box?")


STRUCTURES = (collection, shopping, journey, seats, wages, sharing, ages, baking)
