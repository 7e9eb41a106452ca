"""Fill the placeholders of phrasings, and type questions as people do.

A placeholder in braces is filled from PARTS, each time with another phrase, which may have
placeholders of its own. A question may get an opener, a closer, and the habits of quick typing.
"""

import random
import re

PARTS: dict[str, tuple[str, ...]] = {
    "picture": (
        *("image", "picture", "image", "picture", "photo", "drawing", "photograph", "sketch"),
        *("screenshot", "pic", "canvas", "scene", "figure", "snapshot"),
    ),
    "this": ("this", "the", "the", "this", "my", "that"),
    "things": (
        *("shapes", "shapes", "objects", "figures", "things", "items", "forms", "elements"),
        *("different shapes", "geometric shapes", "single shapes", "drawn shapes"),
    ),
    "thing": ("thing", "object", "shape", "item", "figure", "form", "element"),
    "color": ("color", "color", "colour", "color", "colour", "shade", "hue"),
    "here": (
        *("", "", "", "", " in {this} {picture}", " in {this} {picture}", " here"),
        *(" on {this} {picture}", " in it", " in front of you", " on the page", " in there"),
    ),
    "see": ("do you see", "can you see", "are shown", "are visible", "are drawn", "can be seen"),
    "there": ("are there", "are there", "{see}", "are present", "can you find", "can you spot"),
    "sees": (
        *("do you see", "can you see", "can you find", "does {this} {picture} show"),
        *("can you spot", "do you notice", "did you find", "have you got", "can you make out"),
    ),
    "able": (
        *("can you", "could you", "would you", "will you", "can you please", "could you please"),
        *("would you please", "are you able to", "could you maybe", "can you quickly"),
        *("would you be able to", "please", "please", "now", "now please", "try to", "just"),
        *("I want you to", "I would like you to", "I'd like you to", "I need you to", "kindly"),
        *("can you try to", "do you think you can", "would it be possible to", "go ahead and"),
    ),
    "know": (
        *("tell me", "tell me", "can you tell me", "could you tell me", "please tell me", "say"),
        *("I want to know", "I would like to know", "I'd like to know", "I wonder", "do you know"),
        *("let me know", "I need to know", "please say", "could you say", "can you say"),
        *("would you tell me", "explain", "can you work out", "do you see", "can you see"),
        *("I am curious", "I'm wondering", "find out", "check", "help me see", "any idea"),
    ),
    "give": (
        *("give me", "tell me", "I need", "I want", "can you give me", "could you give me"),
        *("please give me", "I would like", "I'd like", "let me have", "show me", "name", "state"),
        *("please state", "provide", "report", "can I get", "may I have", "could I have"),
    ),
    "for": ("", "", "", "", " for me", " for me", " please", ", please", " now", " for us"),
}

OPENERS = (
    *("Hi. ", "Hello. ", "Hello! ", "Hey, ", "Hi, ", "OK, ", "Okay, ", "So, ", "Well, ", "Now, "),
    *("And ", "Also, ", "Then ", "Next: ", "Next question: ", "One more question: ", "Good. "),
    *("Quick question: ", "Question: ", "I have a question. ", "Another question: ", "Thanks. "),
    *("Look at this. ", "Look at the picture. ", "Please look at the image. ", "Please help. "),
    *("Here is a picture. ", "Here is my drawing. ", "I drew this. ", "My child drew this. "),
    *("Take a look. ", "Look closely. ", "Look carefully at the image. ", "In this picture, "),
    *(
        "In the image, ",
        "From this image, ",
        "Looking at it, ",
        "Given the image, ",
        "Dear model, ",
    ),
    *("Just tell me: ", "Be honest: ", "Please answer: ", "Answer this: ", "Sorry, ", "Great. "),
    *("I found this photo. ", "Somebody sent me this. ", "Based on the picture, ", "Right, "),
)
CLOSERS = (
    *(" Thanks.", " Thank you.", " Thanks!", " Please.", " Please answer.", " Answer briefly."),
    *(" Be brief.", " Keep it short.", " In one sentence, please.", " I am curious.", " Hurry up."),
    *(" I can't see it well.", " What do you think?", " Just the answer.", " One line is enough."),
    *(" Thanks in advance.", " Reply in English.", " I need it quickly.", " Do your best."),
)
QUESTION_STARTS = (
    *("what", "which", "where", "how", "is", "are", "do", "does", "did", "can", "could", "would"),
    *("will", "have", "has", "who", "when", "why", "whereabouts", "got", "in", "on", "at"),
)


def fill(rng: random.Random, template: str, **given: str) -> str:
    """Fill a template's placeholders and type the question as people do.

    Args:
        given: fillings that win over PARTS.
    """
    text = template
    while match := re.search(r"{(\w+)}", text):
        name = match.group(1)
        phrase = given[name] if name in given else rng.choice(PARTS[name])
        text = text[: match.start()] + phrase + text[match.end() :]
    return typed(rng, text)


def typed(rng: random.Random, text: str) -> str:
    """Add an opener, a closer, and the habits of quick typing."""
    text = text[0].upper() + text[1:]
    if text.endswith(".") and text.split()[0].lower() in QUESTION_STARTS:
        text = f"{text[:-1]}?"  # "Can you count them." is a question
    if rng.random() < 0.12:
        opener = rng.choice(OPENERS)
        goes_on = not opener.endswith((". ", "! ")) and not text.startswith(("I ", "I'"))
        text = opener + (text[0].lower() + text[1:] if goes_on else text)
    if rng.random() < 0.06:
        text += rng.choice(CLOSERS)
    manner = rng.random()
    if manner < 0.08:
        text = text.lower()
    elif manner < 0.13:
        text = text.rstrip("?.")
    elif manner < 0.17:
        text = text.lower().rstrip("?.")
    elif manner < 0.18:
        text = f"{text.rstrip('?.')}{rng.choice(('!', '...', '??', ' ?', '?!'))}"
    return text
