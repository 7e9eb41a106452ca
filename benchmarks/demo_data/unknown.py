"""Questions whose answer is in no picture that the model knows."""

import random

from demo_data.wording import PARTS, typed

THINGS = (
    "airplane apple baby ball banana bear bench bicycle bike bird boat book bottle bowl boy bridge "
    "building bus cake camera candle car cat chair child clock cloud computer cow cup dinosaur "
    "dog door dragon duck elephant eye face farm fire fish flag flower fork frog garden giraffe "
    "girl glass guitar hand hat horse house insect island key kitchen knife lamp laptop leaf lion "
    "logo man monkey moon mountain mouse mouth mushroom nose orchestra owl painting parrot pen "
    "penguin person phone pizza plant plate rabbit river road robot rocket rose sandwich ship "
    "shoe snake snowman sofa spider spoon street sun table telephone tiger toaster tower train "
    "tree truck umbrella vase wall watch whale window wolf woman zebra"
).split()
PLACES = (
    "Africa Asia Australia Austria Berlin Brazil Canada China Egypt England Europe France Germany "
    "Greece India Italy Japan Kenya London Madrid Mexico Norway Paris Peru Poland Portugal Rome "
    "Russia Spain Sweden Tokyo Turkey Vienna"
).split()
PEOPLE = (
    "Anna Bob Charles Einstein Emma Lincoln Lucy Maria Mozart Napoleon Newton Peter Picasso "
    "Shakespeare Tom Washington"
).split()
TOPICS = (
    "art biology books chemistry cooking cars computers dinosaurs economics football films food "
    "games gardening geography history jazz law love mathematics medicine money music philosophy "
    "physics poetry politics programming religion science space sports travel war"
).split()
ABOUT_THINGS = (
    *("Is there {a}?", "Is there {a} in the picture?", "Do you see {a}?", "Where is the {t}?"),
    *("What color is the {t}?", "What colour is the {t}?", "How many {s} are there?"),
    *("How many {s} do you see?", "Count the {s}.", "Can you see {a}?", "Where is {a}?"),
    *("What is the {t} doing?", "How big is the {t}?", "How old is the {t}?", "Find the {t}."),
    *("Does the picture show {a}?", "What does the {t} look like?", "Describe the {t}."),
    *("Is the {t} left of the {u}?", "Is the {t} happy?", "What kind of {t} is this?"),
    *("How many legs does {a} have?", "Draw {a}.", "What do {s} eat?", "Why is the {t} there?"),
    *("What brand is the {t}?", "Whose {t} is it?", "Is it {a}?", "Is this {a}?", "Show me {a}."),
    *("How much does {a} cost?", "What is {a} made of?", "Who made the {t}?", "Do {s} sleep?"),
    *("Which {t} is the best?", "Do you like {s}?", "What is {a}?", "Is the {t} open?"),
)
ABOUT_PLACES = (
    *("What is the capital of {p}?", "Where is {p}?", "Is this {p}?", "How big is {p}?"),
    *("How many people live in {p}?", "Who is the president of {p}?", "Was it made in {p}?"),
    *("What language do they speak in {p}?", "Have you been to {p}?", "How far is {p}?"),
    *("What is the weather in {p}?", "What time is it in {p}?", "Tell me about {p}."),
)
ABOUT_PEOPLE = (
    *("Who is {n}?", "Is this {n}?", "When was {n} born?", "Did {n} draw this?"),
    *("What did {n} do?", "Where is {n}?", "What is {n} wearing?", "Tell me about {n}."),
)
ABOUT_TOPICS = (
    *("Tell me about {k}.", "Explain {k}.", "What do you know about {k}?", "Do you like {k}?"),
    *("Write a poem about {k}.", "Tell me a joke about {k}.", "What is {k}?", "Why study {k}?"),
    *("Write a story about {k}.", "Is {k} important?", "Who invented {k}?", "Recommend {k}."),
)
ARITHMETIC = (
    *("What is {i} plus {j}?", "What is {i} + {j}?", "What is {i} times {j}?", "{i} + {j} = ?"),
    *("How much is {i} minus {j}?", "Divide {i} by {j}.", "Is {i} larger than {j}?"),
    *("What is the square root of {i}?", "Is {i} a prime number?", "Calculate {i} * {j}."),
)
WHOLE = (
    *("What is the weather like?", "Is it raining?", "Is it day or night?", "What time is it?"),
    *(
        "What year is it?",
        "What day is today?",
        "Who are you?",
        "What is your name?",
        "How are you?",
    ),
    *("Who drew this?", "Who made this picture?", "Who took this photo?", "Who painted it?"),
    *("When was this picture taken?", "Where was this picture taken?", "Why was it drawn?"),
    *("How much does it cost?", "Is it expensive?", "Is it beautiful?", "Do you like it?"),
    *("What is the mood of this picture?", "What does it mean?", "What is happening?"),
    *("What is the person doing?", "How many people are there?", "Is anybody there?"),
    *("Are there any people in the picture?", "What is the man holding?", "Is she smiling?"),
    *("What animal is this?", "Are there any animals?", "What breed is it?", "What plant is it?"),
    *("What will happen next?", "What happened before?", "What season is it?", "Is it safe?"),
    *("Who won the game?", "What sport is this?", "What food is this?", "Is it tasty?"),
    *("How does it smell?", "How heavy is it?", "How tall is it?", "How old is it?", "Is it hot?"),
    *("What material is it made of?", "What is it for?", "How does it work?", "Can I eat it?"),
    *("Tell me a joke.", "Sing a song.", "Write a poem.", "Tell me a story.", "Say hello."),
    *("Translate it into French.", "Translate this to German.", "How do you say it in Spanish?"),
    *("What is the meaning of life?", "Are you human?", "Can you think?", "How do you feel?"),
    *("What is the news?", "Who is the president?", "What should I eat?", "Where do I live?"),
    *("What is love?", "Write some code.", "Fix this program.", "Solve the equation."),
    *("What is the title of this picture?", "Which artist painted this?", "Is this real?"),
    *("What is behind it?", "Is it a photo or a painting?", "What camera was used?"),
    *("Hello", "Hi", "Thank you.", "Good morning.", "Help", "Goodbye", "Why?", "Who?", "When?"),
    *("Is this picture funny?", "Would you buy it?", "Which team is this?", "What is he saying?"),
    *(
        "How far away is it?",
        "How fast is it going?",
        "Is it broken?",
        "Is it edible?",
        "Is it art?",
    ),
)
# The openings of the other questions, so that politeness alone says nothing.
REQUESTS = (
    *(
        "{able} describe the {t}.",
        "{able} describe {a}.",
        "{able} find the {t}.",
        "{able} count the {s}.",
    ),
    *("{able} locate {a}.", "{able} draw {a}.", "{able} tell me a joke.", "{able} write a poem."),
    *("{able} explain {k}.", "{able} translate it.", "{able} name the {t}.", "{able} help me."),
    *("{able} add {i} and {j}.", "{able} name a city in {p}.", "{able} list some {s}."),
    *("{know} where {p} is.", "{know} where the {t} is.", "{know} how many {s} there are."),
    *(
        "{know} who {n} is.",
        "{know} what {k} is.",
        "{know} what time it is.",
        "{know} who drew it.",
    ),
    *("{know} if there is {a}.", "{know} whether you see {a}.", "{know} what the {t} is doing."),
    *("{know} what color the {t} is.", "{know} how old it is.", "{know} why the {t} is there."),
    *("{give} the number of {s}.", "{give} the color of the {t}.", "{give} the name of the {t}."),
    *(
        "{give} some money.",
        "{give} a story about {k}.",
        "{give} the capital of {p}.",
        "{give} {a}.",
    ),
    *("I am looking for {a}. Is there one?", "I am looking for the {t}. Where is it?"),
    *("Which of the {s} is bigger?", "What did the {t} say?", "What is the {t} made of?"),
)


def draw_unknown(rng: random.Random) -> str:
    """Draw one such question."""
    templates = rng.choices(
        (ABOUT_THINGS, ABOUT_PLACES, ABOUT_PEOPLE, ABOUT_TOPICS, ARITHMETIC, WHOLE, REQUESTS),
        (30, 9, 7, 8, 8, 26, 12),
    )[0]
    thing, other = rng.choice(THINGS), rng.choice(THINGS)
    text = rng.choice(templates).format(
        a=f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}",
        t=thing,
        u=other,
        s=f"{thing}s",
        p=rng.choice(PLACES),
        n=rng.choice(PEOPLE),
        k=rng.choice(TOPICS),
        i=rng.randint(1, 99),
        j=rng.randint(2, 20),
        able=rng.choice(PARTS["able"]),
        know=rng.choice(PARTS["know"]),
        give=rng.choice(PARTS["give"]),
    )
    return typed(rng, text)
