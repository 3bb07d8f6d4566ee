"""Expected values: the official scripts' outputs and their table, as recorded in the evaluation specification."""

import pytest

from modules.metrics.vqa_answers import CONTRACTIONS, evalai_form, official_form

VECTORS = [
    ("Yes.", "yes"),
    ("No, it is not.", "no it is not"),
    ("Two dogs", "2 dogs"),
    ("none", "0"),
    ("none of the above", "0 of above"),
    ("A man", "man"),
    ("a", ""),
    ("THE", ""),
    ("(a)", ""),
    ("an apple a day", "apple day"),
    ("a/c", "c"),
    ("1,000", "1000"),
    ("20,000,000", "20000000"),
    ("12.5", "12.5"),
    ("3.", "3"),
    ("5.0.", "5.0"),
    ("u.s.", "us"),
    ("7 a.m.", "7 am"),
    ("10:30 am", "10:30 am"),
    ("black-white", "black white"),
    ("black - white", "black white"),
    ("red/white", "red white"),
    ("1/2", "1 2"),
    ("$5", "$5"),
    ("50%", "50%"),
    ("#1", "#1"),
    ("t-shirt", "t shirt"),
    ("dont", "don't"),
    ("Im", "im"),
    ("hes", "he's"),
    ("yall", "y'all"),
    ("oclock", "o'clock"),
    ("eleven", "eleven"),
    ("x.y", "xy"),
    ('"stop"', "stop"),
    ("?", ""),
    ("line\nbreak", "line break"),
]
DIFFERENT = [
    ("he's", "he's", "he 's"),
    ("john's", "john's", "john 's"),
    ("what's", "what's", "what 's"),
    ("let's", "let's", "let 's"),
    ("red,white", "red white", "redwhite"),
    ("it's", "it's", "it 's"),
]
TABLE = """
ain't: aint; aren't: arent; can't: cant; could've: couldve; couldn't: couldnt; couldn't've: couldn'tve couldnt've;
didn't: didnt; doesn't: doesnt; don't: dont; hadn't: hadnt; hadn't've: hadnt've hadn'tve; hasn't: hasnt;
haven't: havent; he'd: hed; he'd've: hed've he'dve; he's: hes; how'd: howd; how'll: howll; how's: hows;
I'd've: Id've I'dve; I'm: Im; I've: Ive; isn't: isnt; it'd: itd; it'd've: itd've it'dve; it'll: itll; let's: let's;
ma'am: maam; mightn't: mightnt; mightn't've: mightnt've mightn'tve; might've: mightve; mustn't: mustnt;
must've: mustve; needn't: neednt; not've: notve; o'clock: oclock; oughtn't: oughtnt;
'ow's'at: ow's'at 'ows'at 'ow'sat; shan't: shant; she'd've: shed've she'dve; she's: she's; should've: shouldve;
shouldn't: shouldnt; shouldn't've: shouldnt've shouldn'tve; somebodyd: somebody'd;
somebody'd've: somebodyd've somebody'dve; somebody'll: somebodyll; somebody's: somebodys; someone'd: someoned;
someone'd've: someoned've someone'dve; someone'll: someonell; someone's: someones; something'd: somethingd;
something'd've: somethingd've something'dve; something'll: somethingll; that's: thats; there'd: thered;
there'd've: thered've there'dve; there're: therere; there's: theres; they'd: theyd; they'd've: theyd've they'dve;
they'll: theyll; they're: theyre; they've: theyve; 'twas: twas; wasn't: wasnt; we'd've: wed've we'dve; we've: weve;
weren't: werent; what'll: whatll; what're: whatre; what's: whats; what've: whatve; when's: whens; where'd: whered;
where's: wheres; where've: whereve; who'd: whod; who'd've: whod've who'dve; who'll: wholl; who's: whos; who've: whove;
why'll: whyll; why're: whyre; why's: whys; won't: wont; would've: wouldve; wouldn't: wouldnt;
wouldn't've: wouldnt've wouldn'tve; y'all: yall; y'all'll: yall'll y'allll; y'all'd've: yall'd've y'alld've y'all'dve;
you'd: youd; you'd've: youd've you'dve; you'll: youll; you're: youre; you've: youve
"""


@pytest.mark.parametrize(("text", "expected"), VECTORS)
def test_both_forms(text: str, expected: str) -> None:
    assert official_form(text) == evalai_form(text) == expected


@pytest.mark.parametrize(("text", "official", "evalai"), DIFFERENT)
def test_forms_that_differ(text: str, official: str, evalai: str) -> None:
    assert (official_form(text), evalai_form(text)) == (official, evalai)


def test_contractions_are_the_official_table() -> None:
    expected = {
        spelling: word.strip()
        for word, spellings in (entry.split(":") for entry in TABLE.split(";"))
        for spelling in spellings.split()
    }
    assert expected == CONTRACTIONS
    assert len(CONTRACTIONS) == 120


def test_at_most_32_full_stops_vanish() -> None:
    assert official_form("x." * 33) == "x" * 33 + "."


def test_a_number_with_a_comma_lets_all_signs_vanish() -> None:
    assert official_form("1,000-2") == "10002"
    assert official_form("1000-2") == "1000 2"
