"""Writes English captions of a coloured shape, and reads shape and colour from them.

Template, opinion and synonyms are private to the caption. They are drawn uniformly, and
different draws give different sentences. Thus the entropy of a caption given shape and
colour is log(NUM_WORDINGS) nats, and the information shared with the image is
log(number of combinations) nats.
"""

from collections.abc import Iterable

from mmvae_jax import tokens

# All values have the same number of words, and no word names two values.
SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star", "pentagram"),
    "heart": ("heart", "valentine"),
    "cross": ("cross", "plus"),
}
COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine", "amber"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "jade"),
    "blue": ("blue", "azure", "cobalt"),
    "purple": ("purple", "violet", "mauve"),
    "white": ("white", "ivory", "snowy"),
    "black": ("black", "ebony", "inky"),
}
# Templates do not mention size, position or background, which are private to the image.
# The article {a} depends on the next word.
TEMPLATES = (
    "{a} {opinion} {colour} {shape}",
    "there is {a} {opinion} {colour} {shape} here",
    "this {opinion} {shape} is {colour}",
    "{a} {opinion} {shape} painted in {colour}",
    "the picture shows {a} {opinion} {colour} {shape}",
    "someone drew {a} {opinion} {colour} {shape} for us",
    "{colour} is the colour of this {opinion} {shape}",
    "one can see that the {opinion} {shape} is {colour}",
    "look at the {opinion} {colour} {shape}",
    "what you see is {a} {opinion} {shape} and it is {colour}",
)
OPINIONS = ("", "nice", "pretty", "simple")
NUM_WORDINGS = (
    len(TEMPLATES)
    * len(OPINIONS)
    * len(SHAPES["circle"])
    * len(COLOURS["red"])
)  # fmt: skip
MEANINGS = {
    "shape": {word: name for name, words in SHAPES.items() for word in words},
    "colour": {word: name for name, words in COLOURS.items() for word in words},
}


def write_caption(shape: str, colour: str, wording: int) -> str:
    """One caption.

    Args:
      shape: a key of SHAPES.
      colour: a key of COLOURS.
      wording: 0..NUM_WORDINGS - 1, index of template, opinion and synonyms.

    Returns:
      A sentence in lower case without punctuation.
    """
    choices = []
    for options in (TEMPLATES, OPINIONS, SHAPES[shape], COLOURS[colour]):
        wording, index = divmod(wording, len(options))
        choices.append(options[index])
    template, opinion, shape_word, colour_word = choices
    text = template.format(
        a="{a}", opinion=opinion, shape=shape_word, colour=colour_word
    )
    words = text.split()
    for place, word in enumerate(words):
        if word == "{a}":
            words[place] = "an" if words[place + 1][0] in "aeiou" else "a"
    return " ".join(words)


def most_words() -> int:
    """The number of words of the longest caption."""
    return max(
        len(write_caption(shape, colour, wording).split())
        for shape in SHAPES
        for colour in COLOURS
        for wording in range(NUM_WORDINGS)
    )


def parse_caption(words: Iterable[str]) -> dict[str, str | None]:
    """Shape and colour that a caption names: the inverse of `write_caption`.

    Args:
      words: the words of a real or generated caption, in any order.

    Returns:
      {"shape": name, "colour": name}; None if no word names a value, or words name
      several.
    """
    return tokens.read_attributes(words, MEANINGS)
