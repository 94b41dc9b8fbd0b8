"""English sentences put together from word lists, for the synthetic voices of the demo corpus."""

import re

import numpy as np

_WORDS = {
    "person": "farmer, teacher, doctor, sailor, neighbour, painter, baker, driver, child, grandmother, captain, "
    "student, carpenter, singer, gardener, stranger, brother, visitor, engineer, waiter, postman, queen, fisherman",
    "thing": "basket, letter, window, bridge, garden, bicycle, kettle, ladder, ship, candle, mountain, blanket, "
    "mirror, bottle, picture, station, jacket, pencil, orange, village, chair, engine, hammer, wheel, shoe, fence",
    "things": "apples, horses, stones, flowers, questions, clouds, papers, sandwiches, birds, gloves, fishes, brushes, "
    "children, pages, voices, churches, islands, keys, songs, judges, boxes, mice, leaves, thousand steps",
    "quality": "quiet, yellow, heavy, broken, gentle, narrow, bright, shallow, thick, strange, cheap, royal, "
    "pleasant, huge, frozen, clever, dusty, ripe, violet, smooth, loud, generous, vague, old",
    "did": "carried, found, painted, measured, pushed, finished, watched, sold, washed, chose, forgot, followed, "
    "borrowed, opened, described, fetched, polished, divided, showed, joined, moved, caught",
    "how": "slowly, carefully, suddenly, without any hurry, with great pleasure, very early, once again, "
    "for the third time, just in time, before breakfast, after the show, every Thursday",
    "where": "near the river, behind the church, in the kitchen, at the market, across the valley, under the bridge, "
    "beside the fire, on the other shore, by the village school, above the harbour, through the forest",
    "number": "two, three, five, six, seven, nine, eleven, twelve, fifteen, twenty, thirty, a hundred, a few, many",
    "weather": "rainy, sunny, foggy, windy, cold, warm, stormy, chilly",
}
_LISTS = {kind: words.split(", ") for kind, words in _WORDS.items()}
_SENTENCES = (
    "The {quality} {person} {did} the {thing} {where}.",
    "My {person} {did} {number} {quality} {things}.",
    "{how}, the {person} {did} a {quality} {thing}.",
    "Who {did} the {thing} {where}?",
    "On a {weather} morning, we {did} {number} {things}.",
    "The {thing} {where} was {quality} and {quality}.",
    "Please bring {number} {things}, the {quality} {thing}, and the {person}.",
    "She {did} the {things} {how}.",
    "There were {number} {things} {where}.",
    "It was too {weather}, so the {person} {did} the {thing}.",
    "Nobody thought that a {quality} {thing} could be so {quality}.",
    "He asked the {person} about the {things} {where}.",
)


def compose(rng: np.random.Generator) -> str:
    """One sentence of 6 to 14 words; the draws come from `rng`."""
    pattern = _SENTENCES[rng.integers(len(_SENTENCES))]

    def word(match: re.Match) -> str:
        choices = _LISTS[match[1]]
        return choices[rng.integers(len(choices))]

    sentence = re.sub(r"\{(\w+)\}", word, pattern)
    return re.sub(r"\ba (?=[aeio])", "an ", sentence[0].upper() + sentence[1:])
