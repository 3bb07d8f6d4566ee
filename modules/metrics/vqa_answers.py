"""The two ways to normalise VQA answers before they are compared.

`official_form` is what VQAv2's own ``vqaEval.py`` does to both sides; `evalai_form` is what LLaVA and others do to a
prediction before they send it to EvalAI. Both keep the mistakes of the originals, because the numbers depend on them.
"""

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MOST_FULL_STOPS = 32
"""The official script passes a flag in place of the count of replacements; this is the flag's value."""
_DIGITS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_WITHOUT_APOSTROPHES = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_OTHER_SPELLINGS = """
couldn't've: couldn'tve couldnt've; hadn't've: hadnt've hadn'tve; he'd've: hed've he'dve; I'd've: Id've I'dve;
it'd've: itd've it'dve; let's: let's; mightn't've: mightnt've mightn'tve; 'ow's'at: ow's'at 'ows'at 'ow'sat;
she'd've: shed've she'dve; she's: she's; shouldn't've: shouldnt've shouldn'tve; somebodyd: somebody'd;
somebody'd've: somebodyd've somebody'dve; someone'd've: someoned've someone'dve;
something'd've: somethingd've something'dve; there'd've: thered've there'dve; they'd've: theyd've they'dve;
we'd've: wed've we'dve; who'd've: whod've who'dve; wouldn't've: wouldnt've wouldn'tve; y'all'll: yall'll y'allll;
y'all'd've: yall'd've y'alld've y'all'dve; you'd've: youd've you'dve
"""


def _contractions() -> dict[str, str]:
    found = {word.replace("'", ""): word for word in _WITHOUT_APOSTROPHES.split()}
    for entry in _OTHER_SPELLINGS.split(";"):
        word, spellings = entry.split(":")
        found |= dict.fromkeys(spellings.split(), word.strip())
    return found


CONTRACTIONS = _contractions()
"""Spelling to the official one. Words are looked up in lower case, so spellings with a capital never match."""


def without_breaks(text: str) -> str:
    """``text`` with spaces for line breaks and tabs, stripped, as the official script does to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**16)
def official_form(text: str) -> str:
    """The form that ``vqaEval.py`` compares: lower case, numbers as digits, without punctuation and articles."""
    return _words(_without_punctuation(without_breaks(text)))


def evalai_form(text: str) -> str:
    """The form of ``EvalAIAnswerProcessor``, for submissions: "john's" to "john 's", "red,white" to "redwhite"."""
    return official_form(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def _without_punctuation(text: str) -> str:
    """Remove punctuation. A character is removed if it touches a space anywhere, or if the text has a number like
    1,000; otherwise it becomes a space."""
    has_number = re.search(r"\d,\d", text) is not None
    result = text
    for sign in _PUNCTUATION:
        vanishes = has_number or f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if vanishes else " ")
    return re.sub(r"\.(?!\d)", "", result, count=_MOST_FULL_STOPS)


def _words(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
