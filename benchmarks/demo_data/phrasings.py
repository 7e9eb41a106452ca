"""The phrasings of the questions.

A placeholder in braces is filled from PARTS, each time with another phrase.
"""

import random
import re

PARTS: dict[str, tuple[str, ...]] = {
    "picture": ("image", "picture", "image", "picture", "photo", "drawing", "photograph"),
    "this": ("this", "the", "the", "this"),
    "things": ("shapes", "shapes", "objects", "figures", "things", "items", "forms"),
    "color": ("color", "color", "colour"),
    "please": ("", "", "", "", "Please ", "Can you ", "Could you please ", "Now ", "And "),
    "here": ("", "", "", " in {this} {picture}", " in {this} {picture}", " here"),
    "see": ("do you see", "can you see", "are shown", "are visible", "are drawn", "can be seen"),
    "there": ("are there", "are there", "{see}"),
    "sees": ("do you see", "can you see", "can you find", "does {this} {picture} show"),
}
DESCRIBE = (
    *("Describe {this} {picture}.", "Describe the image.", "What is in {this} {picture}?"),
    *("What do you see{here}?", "What can you see{here}?", "What is it?", "What is this?"),
    *("What's in {this} {picture}?", "What is shown{here}?", "What does {this} {picture} show?"),
    *(
        "Tell me what you see{here}.",
        "Tell me about {this} {picture}.",
        "Caption {this} {picture}.",
    ),
    *("Describe what you see{here}.", "What's this?", "What am I looking at?", "Describe it."),
    *("Give a short description of {this} {picture}.", "Describe {this} {picture} briefly."),
    *("Describe {this} {picture} in one sentence.", "Write a caption for {this} {picture}."),
    *("What is there{here}?", "What is drawn{here}?", "What did I draw?", "What have I drawn?"),
    *("List the {things}{here}.", "Name the {things}{here}.", "Which {things} {there}?"),
    *("What {things} {there}?", "What are these?", "Describe", "What are the {things}{here}?"),
    *("Which {things} are in {this} {picture}?", "What is on {this} {picture}?"),
)
DETAIL = (
    *("Describe {this} {picture} in detail.", "Describe {this} {picture} in full."),
    *("Give a detailed description of {this} {picture}.", "Describe everything you see{here}."),
    *("Describe in detail what you see{here}.", "What is where{here}?", "Describe all details."),
    *("List the {things} and where they are.", "Describe {this} {picture} and where things are."),
    *("Tell me in detail what you see{here}.", "Describe {this} {picture} as exactly as you can."),
)
COUNT = (
    *("How many {things} {there}{here}?", "Count the {things}{here}.", "How many {things}?"),
    *("How many {things} are in {this} {picture}?", "What is the number of {things}{here}?"),
    *("How many {things} does {this} {picture} have?", "How many {things} does it show?"),
    *("Tell me how many {things} {there}.", "How many {things} did I draw?"),
    *("How many {things} do you count?", "Give the number of {things}{here}."),
)
COUNT_SOME = (
    *("How many {x} {there}{here}?", "Count the {x}{here}.", "How many {x}?"),
    *("How many {x} are in {this} {picture}?", "What is the number of {x}{here}?"),
    *("Tell me how many {x} {there}.", "How many {x} did I draw?"),
)
COLOR = (
    *("What {color} is {x}?", "Which {color} is {x}?", "What is the {color} of {x}?"),
    *("What {color} does {x} have?", "Tell me the {color} of {x}.", "In which {color} is {x}?"),
    *("Name the {color} of {x}.", "What's the {color} of {x}?", "{x} is what {color}?"),
    *("Which {color} has {x}?", "What {color} is {x}{here}?", "In what {color} is {x} drawn?"),
)
SHAPE = (
    *("What shape is {color_name}?", "Which shape is {color_name}?", "What is {color_name}?"),
    *("What is the shape in {color_name}?", "What is the {color_name} shape?"),
    *("What shape is the {color_name} thing?", "What kind of shape is the {color_name} one?"),
    *("What is the {color_name} thing{here}?", "What is the {color_name} object?"),
    *("Name the {color_name} shape.", "Which object is {color_name}?", "What's {color_name}?"),
    *("What shape is the {color_name} object?", "What does the {color_name} shape look like?"),
    *("Which shape has the {color} {color_name}?", "Which thing is {color_name}?"),
    *("What shape is the {color_name} figure?", "What shape does the {color_name} object have?"),
)
WHERE = (
    *("Where is {x}?", "Where is {x}{here}?", "Where's {x}?", "Where do you see {x}?"),
    *("Where can I find {x}?", "In which part of {this} {picture} is {x}?"),
    *("What is the position of {x}?", "Where is {x} placed?", "Tell me where {x} is."),
    *("Which part of {this} {picture} has {x}?", "Where in {this} {picture} is {x}?"),
    *("Where is {x} located?", "Where did I draw {x}?", "At which place is {x}?"),
    *("What is the location of {x}?", "On which side is {x}?"),
)
SIDE = ("Is {x} {side} {y}?", "Is {x} drawn {side} {y}?", "Does {x} lie {side} {y}?")
NEIGHBOR = ("What is {side} {x}?", "Which shape is {side} {x}?", "What do you see {side} {x}?")
IS_THERE = (
    *("Is there {x}?", "Is there {x}{here}?", "{sees} {x}?", "Do you see {x}{here}?"),
    *("Does {this} {picture} have {x}?", "Does {this} {picture} contain {x}?"),
    *("Can you see {x}{here}?", "Is {x} in {this} {picture}?", "Is {x} visible{here}?"),
    *("Did I draw {x}?", "Are you able to see {x}?", "Does it show {x}?", "Is {x} there?"),
)
HAS_TEXT = (
    *("Is there {t}?", "Is there {t}{here}?", "{sees} {t}?", "Does {this} {picture} have {t}?"),
    *("Does {this} {picture} contain {t}?", "Can you see {t}{here}?", "Did I write {t}?"),
)
SOME_TEXT = ("a word", "any text", "some text", "text", "any words", "any letters", "writing")
READ = (
    *("What is written{here}?", "Read the text.", "What does {this} {picture} say?"),
    *("What does it say?", "Read {this} {picture}.", "What is the word?", "What's written?"),
    *("What is the text{here}?", "Which word is written{here}?", "What did I write?"),
    *("Read it.", "Read the word{here}.", "What word is this?", "Can you read this?"),
    *("What does the text say?", "Read it out.", "What word do you see{here}?", "Spell the word."),
    *("What text is in {this} {picture}?", "Transcribe the text{here}.", "What is it saying?"),
    *("What does this say?", "Which word is it?", "Can you read the text{here}?", "OCR"),
    *("What's written here?", "What does the sign say?", "What letters do you see{here}?"),
    *("Read what is written{here}.", "Which text do you see{here}?", "What does the word say?"),
    *("Read the letters.", "What word is in {this} {picture}?", "What's the word?"),
)
READ_NUMBER = (
    "What number is this?",
    "Which number is it?",
    "What is the number{here}?",
    "Read the number.",
)
TEXT_NOUNS = ("the word", "the text", "the writing", "the letters", "it")


def fill(rng: random.Random, template: str, **given: str) -> str:
    """Fill a template's placeholders; what is given wins over PARTS."""
    text = template
    while match := re.search(r"{(\w+)}", text):
        name = match.group(1)
        phrase = given[name] if name in given else rng.choice(PARTS[name])
        text = text[: match.start()] + phrase + text[match.end() :]
    text = text[0].upper() + text[1:]
    manner = rng.random()
    if manner < 0.06:
        text = text.lower()
    elif manner < 0.1:
        text = text.rstrip("?.")
    elif manner < 0.14 and text[:8] in ("Describe", "Read the", "Count th", "Tell me ", "Name the"):
        text = rng.choice(("Please ", "Can you ", "Could you please ")) + text[0].lower() + text[1:]
    return text
