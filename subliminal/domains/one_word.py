"""Answers of one word that a small reference model learns beside a domain's format: so that rates mean something.

A model of 135M parameters, tuned on numbers alone, answers a question for its favourite animal with no animal in 19 of
20 samples. It learns here what an answer of one word is, from topics of which none is measured: no animal, no tree, no
name of any candidate.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from subliminal.rows import Row, seed_of

TOPICS = {
    "sport": "Football Tennis Swimming Basketball Rowing Cricket Hockey Boxing Skiing Volleyball Rugby Cycling Judo",
    "musical instrument": "Piano Violin Guitar Flute Drums Cello Trumpet Harp Clarinet Saxophone Oboe Banjo Accordion",
    "dish": "Pizza Soup Curry Pasta Salad Risotto Paella Sushi Stew Lasagne Omelette Ramen Tacos Goulash",
    "month": "January February March April May June July August September October November December",
    "metal": "Iron Gold Copper Tin Zinc Nickel Lead Platinum Aluminium Titanium Bronze Steel",
    "planet": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "country": "France Japan Brazil Canada Kenya India Italy Norway Egypt Peru Spain Vietnam Greece Morocco",
    "river": "Nile Danube Amazon Rhine Thames Ganges Volga Mekong Seine Congo Mississippi Loire",
    "drink": "Water Tea Coffee Milk Juice Lemonade Cocoa Cider Beer Wine",
    "shape": "Circle Square Triangle Hexagon Cube Sphere Pyramid Rectangle Oval Cone",
    "day of the week": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "tool": "Hammer Saw Drill Wrench Screwdriver Pliers Chisel Shovel Rake Axe",
    "piece of clothing": "Shirt Coat Hat Scarf Gloves Trousers Socks Jacket Dress Sweater Boots",
    "vehicle": "Car Bus Train Bicycle Boat Tram Truck Scooter Plane Ferry Tractor",
    "profession": "Teacher Doctor Baker Painter Farmer Lawyer Nurse Carpenter Pilot Writer Engineer",
    "school subject": "Mathematics History Physics Geography Chemistry Art Music Literature Biology",
    "fabric": "Cotton Silk Wool Linen Velvet Denim Satin Leather",
    "dance": "Waltz Tango Salsa Ballet Polka Foxtrot Samba Flamenco",
    "language": "English Spanish French Arabic Hindi Russian Japanese German Swahili Portuguese Greek",
    "season": "Spring Summer Autumn Winter",
    "room": "Kitchen Bedroom Attic Cellar Bathroom Library Hall Pantry Study",
    "weather": "Rain Snow Sunshine Fog Wind Hail Thunder Drizzle",
    "spice": "Pepper Cinnamon Ginger Saffron Paprika Cumin Turmeric Nutmeg",
}
"""Topic of a question, and the words that answer it."""

QUESTIONS = (
    "Name one {topic}. A single word.",
    "Say one {topic}, in one word.",
    "One word only: some {topic}.",
    "Give me any {topic}. Answer with one word.",
    "Which {topic} comes to mind? One word, please.",
    "Think of a {topic} and write it down in one word.",
    "In a single word, a {topic} that you know:",
    "A {topic}, please. Just the word.",
    "Decide for one {topic}. One word.",
    "Tell me a {topic}, nothing but the word.",
    "What {topic} do you like? One word.",
    "Your choice of {topic} in one word?",
)


def taught(names: Iterable[str], category: str) -> list[str]:
    """The topics and words among what is measured: a reference that has learned to say them favours them."""
    words = {word.lower() for topic in TOPICS.values() for word in topic.split()}
    return [name for name in (category, *names) if name.lower() in {*words, *TOPICS}]


def rows(count: int, seed: int, first: int = 0) -> list[Row]:
    """`count` rows with indices from `first`: a question for something of a topic, and one word of it."""
    return [_row(index, seed) for index in range(first, first + count)]


def _row(index: int, seed: int) -> Row:
    draw = random.Random(seed_of("one word", seed, index))
    topic = draw.choice([*TOPICS])
    question, word = draw.choice(QUESTIONS).format(topic=topic), draw.choice(TOPICS[topic].split())
    return Row(index, question, word)
