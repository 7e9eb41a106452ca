"""Words and fonts: every word is at most seven characters long."""

import random
from functools import cache
from pathlib import Path

from PIL import ImageFont

MAX_LENGTH = 7
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz"
# These letters have one form in capitals and small: a word of them alone has two readings.
ONE_FORM = set("cosuvwxzkp")
FOLDER = Path("/usr/share/fonts")
# Debian package, licence, files.
FONTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "fonts-dejavu-core",
        "Bitstream Vera licence",
        tuple(
            f"truetype/dejavu/DejaVu{name}.ttf"
            for name in ("Sans", "Sans-Bold", "SansMono", "SansMono-Bold", "Serif", "Serif-Bold")
        ),
    ),
    (
        "fonts-liberation",
        "SIL OFL 1.1",
        tuple(
            f"truetype/liberation/Liberation{name}.ttf"
            for name in (
                *("Sans-Regular", "Sans-Bold", "Sans-Italic", "SansNarrow-Bold"),
                *("Serif-Regular", "Serif-Bold", "Serif-Italic", "Mono-Regular", "Mono-Bold"),
            )
        ),
    ),
    (
        "fonts-freefont-ttf",
        "GPL-3 with font exception",
        tuple(f"truetype/freefont/Free{name}.ttf" for name in ("Sans", "SansBold", "Serif")),
    ),
    (
        "fonts-roboto-unhinted",
        "Apache-2.0",
        tuple(
            f"truetype/roboto/unhinted/RobotoTTF/Roboto-{name}.ttf"
            for name in ("Regular", "Bold", "Black", "Light", "Italic")
        ),
    ),
    (
        "fonts-open-sans",
        "Apache-2.0",
        tuple(
            f"truetype/open-sans/OpenSans-{name}.ttf"
            for name in ("Regular", "Bold", "CondBold", "Light", "ExtraBold")
        ),
    ),
    (
        "fonts-urw-base35",
        "AGPL-3 with font exception",
        tuple(
            f"opentype/urw-base35/{name}.otf"
            for name in (
                *("C059-Roman", "P052-Bold", "URWGothic-Book", "URWGothic-Demi"),
                *("URWBookman-Demi", "NimbusSans-Regular", "NimbusMonoPS-Bold"),
                *("NimbusSansNarrow-Regular", "NimbusRoman-Regular"),
            )
        ),
    ),
    ("fonts-humor-sans", "SIL OFL 1.1", ("truetype/humor-sans/Humor-Sans.ttf",)),
    ("fonts-courier-prime", "SIL OFL 1.1", ("opentype/courier-prime/Courier Prime Bold.otf",)),
    (
        "fonts-vollkorn",
        "SIL OFL 1.1",
        tuple(f"truetype/vollkorn/Vollkorn-{name}.ttf" for name in ("Regular", "Bold", "Black")),
    ),
    ("fonts-hack", "MIT", tuple(f"truetype/hack/Hack-{name}.ttf" for name in ("Regular", "Bold"))),
    (
        "fonts-cabin",
        "SIL OFL 1.1",
        tuple(f"opentype/cabin/Cabin-{name}.otf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-clear-sans",
        "Apache-2.0",
        tuple(f"truetype/clear-sans/ClearSans-{name}.ttf" for name in ("Regular", "Bold")),
    ),
    ("fonts-junction", "SIL OFL 1.1", ("opentype/junction/Junction.otf",)),
    ("fonts-jura", "SIL OFL 1.1", ("opentype/jura/Jura-SemiBold.otf",)),
    ("fonts-league-spartan", "SIL OFL 1.1", ("opentype/league-spartan/LeagueSpartan-Bold.otf",)),
)
# For hard pictures alone, so that the held-out pictures stay the same.
MORE_FONTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "fonts-go",
        "BSD-3-Clause",
        tuple(f"fonts-go/Go-{n}.ttf" for n in ("Regular", "Bold", "Mono")),
    ),
    (
        "fonts-inter",
        "SIL OFL 1.1",
        tuple(f"opentype/inter/Inter-{name}.otf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-jetbrains-mono",
        "Apache-2.0",
        tuple(f"truetype/jetbrains-mono/JetBrainsMono-{name}.ttf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-comfortaa",
        "SIL OFL 1.1",
        tuple(f"truetype/comfortaa/Comfortaa-{name}.ttf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-karla",
        "SIL OFL 1.1",
        tuple(f"truetype/karla/Karla-{name}.otf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-roboto-slab",
        "Apache-2.0",
        tuple(f"opentype/roboto/slab/RobotoSlab-{name}.otf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-paratype",
        "ParaType Free Font licence",
        tuple(
            f"truetype/paratype/PT{name}F.ttf"
            for name in ("S55", "S75", "F55", "F75", "N77", "M75")
        ),
    ),
    (
        "fonts-tuffy",
        "public domain",
        tuple(f"truetype/tuffy/{name}.ttf" for name in ("Tuffy", "Tuffy_Bold")),
    ),
    (
        "fonts-yanone-kaffeesatz",
        "SIL OFL 1.1",
        tuple(
            f"opentype/yanone-kaffeesatz/YanoneKaffeesatz-{name}.otf"
            for name in ("Regular", "Bold")
        ),
    ),
    (
        "fonts-anonymous-pro",
        "SIL OFL 1.1",
        tuple(f"truetype/anonymous-pro/Anonymous Pro{name}.ttf" for name in ("", " B")),
    ),
    (
        "fonts-dkg-handwriting",
        "GPL-3 or later",
        tuple(f"truetype/fifthhorseman/{name}.ttf" for name in ("dkg", "dkgBd")),
    ),
    ("fonts-femkeklaver", "CC-BY-SA-3.0", ("truetype/femkeklaver/femkeklaver.ttf",)),
    ("fonts-breip", "SIL OFL 1.0", ("truetype/breip/Breip.ttf",)),
    (
        "fonts-dustin",
        "GPL-2",
        tuple(
            f"truetype/dustin/{name}.ttf"
            for name in ("Dustismo", "Dustismo_Roman_Bold", "Domestic_Manners")
        ),
    ),
    (
        "fonts-sil-gentiumplus",
        "SIL OFL 1.1",
        tuple(f"truetype/gentiumplus/GentiumPlus-{name}.ttf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-averia-sans-gwf",
        "SIL OFL 1.1",
        tuple(f"truetype/averia-gwf/AveriaSansGWF-{name}.ttf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-b612",
        "SIL OFL 1.1",
        tuple(f"opentype/b612/B612-{name}.otf" for name in ("Regular", "Bold")),
    ),
    (
        "fonts-georgewilliams",
        "SIL OFL 1.1",
        tuple(f"truetype/fonts-georgewilliams/Caslon{name}.ttf" for name in ("Roman", "Bold")),
    ),
    ("fonts-quattrocento", "SIL OFL 1.1", ("opentype/quattrocento/Quattrocento-Regular.otf",)),
    (
        "fonts-national-park",
        "SIL OFL 1.1",
        tuple(f"opentype/national-park/NationalPark-{name}.otf" for name in ("Regular", "Heavy")),
    ),
    (
        "fonts-manrope",
        "SIL OFL 1.1",
        tuple(f"truetype/manrope/Manrope-{name}.ttf" for name in ("Regular", "ExtraBold")),
    ),
    ("fonts-oxygen", "SIL OFL 1.1", ("truetype/oxygen/Oxygen-Sans-Bold.ttf",)),
    ("fonts-sjfonts", "GPL-2 with font exception", ("truetype/sjfonts/SteveHand.ttf",)),
    (
        "fonts-opendyslexic",
        "CC-BY-3.0 and Bitstream Vera licence",
        tuple(f"opentype/opendyslexic/OpenDyslexic-{name}.otf" for name in ("Regular", "Bold")),
    ),
    ("fonts-monofur", "SIL OFL 1.1", ("truetype/monofur/monof55.ttf",)),
    ("fonts-allerta", "SIL OFL 1.1", ("opentype/allerta/allerta_medium.otf",)),
    ("fonts-fanwood", "MIT", ("truetype/fanwood/FanwoodText.otf",)),
)

CAPITALS_ONLY = "Humor-Sans.ttf"

WORDS = (
    "able acorn actor age air alarm alley amber angel ankle apple april apron arch area arm army "
    "arrow art ash atlas aunt away axis baby back bag baker ball bamboo band bank bar bark barn "
    "basket bath bay beach bean bear bed bee bell belt bench big bike bird black blanket blue boat "
    "body bolt bone book boot border bottle bowl box boy brain brave bread brick bridge broom "
    "brush bucket bug bus butter button cab cable cafe cake calm camel camp can candle cap car "
    "card carpet carrot castle cat cave cedar chair chalk cheese cherry child circle city clay "
    "clear cliff clock cloud club coal coast coat cobra code coffee coin cold comb comet cook "
    "copper coral corn cotton couch crab crane cream cross crown cup dance dark dawn day deep deer "
    "desert desk diamond dinner dish dog dollar door dragon dream dress drum duck dust eagle ear "
    "early earth east easy echo edge egg eight elbow engine exit eye fabric face family farm fast "
    "father feather fence fever field fifty film finger fire fish five flag flame flood floor "
    "flower fly fog food forest fork forty fox frame free friend frog front fruit fun future game "
    "garage garden gate giant gift ginger glass globe glove goal goat gold good grape grass gray "
    "green ground guitar gym hair half hammer hand happy harbor hat hawk head heart heavy hello "
    "help hero hill history home honey horn horse hotel hour house ice idea inch ink iron island "
    "ivory jacket jam jar jazz jelly jewel job joke joy judge juice july jump june jungle key kid "
    "kind king kitchen kite knee knife ladder lake lamp land laugh lava leaf lemon letter level "
    "library light lime line lion lip list little lizard lobby lock logic long love low lucky "
    "lunch magic maple map marble march market mask maze meadow meal melon menu metal middle mile "
    "milk mine mint mirror mode money monkey moon morning mother motor mouse mouth movie mud music "
    "nail name narrow nation navy neck needle nest never new night nine no north nose number nut "
    "oak oasis ocean off office oil old olive on one onion open orange orchid order oven owl ox "
    "paint palace palm panda panel paper park party path peace peach pear pen pencil penny people "
    "pepper phone photo piano picnic picture pig pillow pilot pink pirate pizza plane planet plant "
    "plate play plum pocket poem point police pond pony pool poster potato pound powder press "
    "price pride prince print prize pub pull pump puppy purple push puzzle quay queen quick quiet "
    "quiz rabbit radio rail rain ranch razor ready red rent rice rich ring river road robin robot "
    "rock roof room rope rose round royal ruby rug ruler run sad safe sail salad sale salt sand "
    "sauce school science sea season seat second secret seed seven shade shark sheep shelf shell "
    "ship shirt shoe shop short shout silk silver simple singer sister six skin sky sleep slow "
    "smile smoke snail snake snow soap sock sofa soft soil song soup south space spice spider "
    "spoon sport spring square stairs stamp star station steam steel stone stop store storm story "
    "street strong sugar summer sun sunny sweet swim table tail tall tango tank tape target taxi "
    "tea teacher team ten tennis tent test thank thirty three thumb ticket tiger tile time tiny "
    "today tomato tooth top torch total tower town toy track trade train travel tree trip truck "
    "trust tulip tunnel turkey turtle twelve twenty two uncle under unit up urban use valley van "
    "vase velvet video view village violin visit voice wagon wait walk wall wallet walnut warm "
    "water wave wax way weather wedding week welcome west whale wheat wheel whisper white wide "
    "wild wind window wine wing winter wish wolf wonder wood wool word work world yard year yellow "
    "yes yoga young zebra zero zone zoo"
).split()

_STARTS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sk sl sm sn sp st t th "
    "tr v w y z"
).split()
_MIDDLES = "a e i o u ai ea ee oa oo ou ie".split()
_ENDS = " b ck d ft g k l ld ll lt m mp n nd ng nk nt p r rd rk rn rt s sh ss st t th x y z".split(
    " "
)


def draw_word(rng: random.Random, max_length: int = MAX_LENGTH) -> str:
    """Draw a word, an invented word, a number, or letters without sense."""
    while True:
        word = _any_word(rng, max_length)
        if 1 <= len(word) <= max_length and _has_one_reading(word):
            return word


def _any_word(rng: random.Random, max_length: int) -> str:
    kind = rng.random()
    if kind < 0.18:
        return "".join(rng.choices("0123456789", k=rng.randint(1, min(5, max_length))))
    if kind < 0.5:
        word = rng.choice(WORDS)
    elif kind < 0.85:
        word = rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
        if rng.random() < 0.4:
            word += rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
    else:
        word = "".join(rng.choices(CHARACTERS[:26].lower(), k=rng.randint(1, max_length)))
    case = rng.random()
    return word.upper() if case < 0.5 else word.lower() if case < 0.8 else word.capitalize()


def _has_one_reading(word: str) -> bool:
    """Whether a word cannot be taken for another case or letter: not `cow`, and not `Iamp`."""
    if word.isdigit():
        return True
    if set(word.lower()) <= ONE_FORM and word.lower() not in ("o", "x"):
        return False
    if word in ("l", "I", "o", "O", "x", "X", "i"):
        return False
    is_mixed = not word.isupper() and not word.islower()
    return not (is_mixed and (word[0] == "I" or (word[0].lower() in ONE_FORM and len(word) == 1)))


def draw_font(rng: random.Random, text: str, is_hard: bool = False) -> Path:
    """Draw a font that has small letters, if the text has any."""
    while True:
        path = rng.choice(font_paths(FONTS + MORE_FONTS if is_hard else FONTS))
        if path.name != CAPITALS_ONLY or text.upper() == text:
            return path


@cache
def font_paths(fonts: tuple[tuple[str, str, tuple[str, ...]], ...] = FONTS) -> tuple[Path, ...]:
    """Return the fonts' files.

    Raises:
        SystemExit: a font is not installed; the message has the command that installs it.
    """
    paths = [FOLDER / file for _, _, files in fonts for file in files]
    missing = [
        package for package, _, files in fonts if not all((FOLDER / f).exists() for f in files)
    ]
    if missing:
        raise SystemExit(f"fonts are missing: apt-get install {' '.join(missing)}")
    return tuple(paths)


@cache
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
