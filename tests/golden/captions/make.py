"""Makes ``captions.json``: tricky captions, with the tokens and scores from the standard evaluation, whose tokenizer is in Java.

This script was run once, with Java 17 and pycocoevalcap 1.2: ``pip install pycocoevalcap && python
tests/golden/captions/make.py``. We wrote the captions.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

CAPTIONS = [
    # The candidate, then the references.
    (
        "A man's dog can't sit on the half-open door.",
        "a dog cannot sit on a door",
        "The man\u2019s dog can\u2019t sit there!",
    ),
    ('Two 5-year-olds (twins) share a 12" pizza', "Twins, age five, share a 12-inch pizza.", "2 kids & 1 pizza..."),
    ("The bus goes to St. Louis at 5 p.m. on Mon.", "a bus to St. Louis", "At 5:00pm the bus left for St. Louis, Mo."),
    (
        "A sign reads \u201cNo Parking \u2014 8am\u20136pm\u201d.",
        "no parking from 8 a.m. to 6 p.m.",
        'A "no parking" sign -- 8am-6pm',
    ),
    (
        "Mr. and Mrs. Smith's wedding cake, circa '05",
        "the wedding cake of Mr. & Mrs. Smith",
        "A cake from 2005 or '06.",
    ),
    (
        "They're gonna eat; she's gotta go, he'll stay.",
        "they are going to eat",
        "They\u2019re gonna wanna eat, gimme some",
    ),
    ("U.S. Navy F-16s and B-52's in formation", "U.S. jets flying in formation.", "Jets of the U.S. The pilots wave."),
    (
        "An e-mail from joe.public@example.org: see www.example.com/a/b",
        "an e-mail",
        "mail@example.com wrote an e-mail.",
    ),
    (
        "caf\u00e9 au lait, cr\u00e8me br\u00fbl\u00e9e and jalape\u00f1os",
        "coffee and creme brulee",
        "a CAF\u00c9 table: cr\u00e8me br\u00fbl\u00e9e",
    ),
    (
        "It costs $1,299.99 (was US$1,500), i.e. \u20ac1.100 or \u00a3999",
        "it costs about $1,300",
        "Price: \u00a3999; $1,299.99",
    ),
    ("a grey tyre in the centre of the theatre", "a gray tire in the center of the theater", "Grey tyres, centre"),
    (
        "   leading   and trailing\tspaces \u00a0 ",
        "leading and trailing spaces",
        "Leading\u2003and\u3000trailing spaces",
    ),
    ("...", "?!", "an empty picture"),
    ("", "nothing to see", "Nothing..."),
    (".", ".", "!"),
    ("A cat, a dog , and a bird ; all asleep .", "cat dog and bird asleep", "a cat,a dog,and a bird"),
    ("rock 'n' roll band -- '80s style", "a rock'n'roll band of the 1980s", "rock & roll; 1980's style"),
    ("the the the the the the", "the cat the dog", "the"),
    ("a man riding a wave on top of a surfboard", "a man riding a wave on a surfboard", "surfer rides a big wave"),
    (
        "A 1/2 eaten sandwich & 2 1/2 pickles",
        "half-eaten sandwich with 2\u00bd pickles",
        "\u00bd of a sandwich, 2 1/2 pickles",
    ),
    ("call 555-1234 or (212) 555-0199 now!!!", "a poster says call (212) 555-0199", "Call +1 212 555 0199 now!"),
    ("a red/green/blue kite, 6'2\" wide", "a kite that is red, green and blue", "red/green kite; width 6 ft. 2 in."),
    ("Temp. is 98.6\u00b0F (37\u00b0C) @ 10:30", "98.6 degrees on a thermometer", "it is 37 \u00b0C at 10:30am"),
    ("#sunset #nofilter @friend :) <3", "sunset :-) with a friend ;)", "sunset \u2665 with @friend \U0001f305"),
    ("<unk> <person> riding <unk>", "a person riding a horse", "<b>person</b> riding a horse &amp; cart"),
    ("No. 7 jersey, no. The player waves no.", "No. 7 waves.", "player no. 7 waves"),
    ("5 dogs run on the beach", "five dogs run", "dogs running on a beach"),
    ("Vitamin A. The bottle is on a table", "a bottle of vitamin A", "Vitamin A. Bottles on tables."),
    ("don\u2019t feed the animals, y\u2019all", "do not feed the animals", "don't feed 'em, y'all"),
    ("a \u2026 dog \u2026 runs", "a dog ... runs", "a... dog.. runs. . . fast"),
]

FRAMES = [
    (
        "A sign that says {} on a wall.",
        "a wall with a sign that says {}",
        'The sign says: "{}"',
        "{} is written on a sign",
    ),
    ("a man with {}, smiling", "A smiling man ({})", "man & {}...", "The man has {}!"),
    ("{} on the side of a bus", "a bus - {} - in the street", "Bus, '{}'; street.", "there is a bus with {}?"),
]

PIECES = (
    """
cannot|gonna|Gotta|lemme|gimme|wannabe|'tis|'Twas|'twill|d'ye|more'n|o'clock|O'Brien|O\u2019Hare|D'Angelo|l'eau|ma'am
y'all|c'mon
s'mores|li'l|ol' man|goin' home|'em|\u2019em|'n'|\u2019n\u2019|rock'n'roll|rock-n-roll|jack-o'-lantern|e'er
ko\u2019olau|Hawai'i|po'boy
isn't|ISN'T|couldn't've|I'd've|it`s|dogs'|James's|children\u2019s|1950's|'50s|\u201980s|'05|mother-in-law's|don\u00b4t
U.S.|U.S.A.|U.K.|D.C.|J.R.R. Tolkien|a.m.|P.M.|e.g.|i.e.|a.k.a.|Ph.D.|M.D.|Inc.|Co.|Ltd.|Corp.|etc.|vs.|No. 5
no. five|St. Mary
Mt. Fuji|Ft. Worth|Dr. Who|Jr.|Sr.|Ave.|Blvd.|Rd.|Jan. 5|Sept. 11th|Mon.|sat.|Calif.|Mass.|mass.|ill.|approx. 5|ft.
in.|lbs.|Fig. 3
A. The|e.g.,-vs.,|Cannot&b|B. Mr. Jones|est.s|dog.,|Wed.a|St.Louis|min.;|hello.world|end.Start|foo!bar|what?now|Yahoo!|Yahoo!'s
3|1,000|1,234,567|3.5|.5|5.|1/2|11/12|1 1/2|2-1/2|2\u00bd|\u00bc|\u2153|\u215b|3-4|1st|22nd|1980s|1990-2000
12/25/2014|25-12-2014
2014-12-25|12.25.2014|10:30|10:30am|5pm|5p.m.|24/7|$5|$5.00|$1.5m|\u00a35|\u20ac5|5\u00a2|\u00a55|US$5|A$AP|#1|5%
50%-off|5'10\"|6'|10\"
5ft|6-foot-tall|5x7|4\u00d76|3D|3-D|98.6\u00b0F|+1|-1|-5.5|555-1234|555-555-1234|(555) 123-4567|1-800-555-1234
+44 20 7946 0958
007|747|A380|F-16|R2-D2|MP3|H2O|CO\u2082|m\u00b2|1080p|5.5ft|192.168.1.1|v2.0|1e5
X-ray|T-shirt|well-dressed|black-and-white|half--eaten|anti- and pro-war
pro- |half\u2013eaten|half\u2014eaten|half \u2014 eaten|a \u2013 b
non\u2011breaking|soft\u00adhyphen
snake_case|_under_|*bold*|**bold**|f***|sh*t|---|-----|==|~|^|\\|C:\\dir|a\\/b|and/or|w/|w/o|c/o|black/white|a/b/c/d
km/h
AT&T|Q&A|M&M's|B&W|b&w|A & B|&amp;|&lt;3|&quot;hi&quot;|&nbsp;|&#39;|caf&eacute;|C++|C#|F#|a+b|2+2=4
http://www.example.com|https://example.co.uk/a/b?c=d&e=f#g|www.example.com|example.com|example.org/a|https://x|https://xy|example.net.
me@example.com
first.last@mail.example.org,|@user_name|#tag|#tag1|#tag_two|photo.jpg|IMG_1234.JPG|1.mp3|readme.md
:)|:-)|;)|:(|:D|:P|:-D|:'(|=)|:/|<3|>_<|^_^|(^_^)|-_-|(-_-)|o_O|XD|8)
(round)|[square]|{curly}|<angle>|</b>|<br />|<a href=\"x\">|<<double>>|[sic]|(a)|((a))
\u201cdouble\u201d|\u2018single\u2019|\u00abguillemets\u00bb|\u201elow\u201c|``ticks''|\"\"|''
\u201c\u2018both\u2019\u201d|a\"b|'quoted'|'q'|\u2019tis
!!|!!!|??|?!|..|....|. . .|\u2026|,,|;|:|::|/|//|*|@|#|##|$|$$|%|&|+|=
na\u00efve|Z\u00fcrich|\u00c5ngstr\u00f6m|pi\u00f1ata|e\u0301clair|\ufb01sh|\u6f22\u5b57|\u304b\u306a|\ud55c\uae00
\u041f\u0440\u0438\u0432\u0435\u0442|\u03b1\u03b2\u03b3|\u05e9\u05dc\u05d5\u05dd|\u0645\u0631\u062d\u0628\u0627
\u0661\u0662\u0663|\u0938\u0941\u0930\u091c
\U0001f600|\U0001f436\U0001f43e|\u2764\ufe0f|\U0001f44d\U0001f3fd|\u2605|\u2665|\u266a|\u2713|\u2192|\u00a9|\u00ae
\u2122|\u2022|\u00b7|\u00d7|\u00f7|\u00b1|\u00b0|\u00a7|\u00bf|\u00a1|\u2032|\u2033
zero\u200bwidth|\ufeffmark|thin\u2009space|no\u00a0break|wide\u3000space|tab\tbed
colour|favourite|aeroplane|theatre|organise|grey|jewellery|programme|litres|kerb
THE END|iPhone|McDonald's|Coca-Cola|7-Eleven|WWII|DVDs|TV's|\u00c9COLE|STRA\u00dfE|\u0130stanbul
\u03a3\u039f\u03a6\u039f\u03a3
""".strip()
    .replace("\n", "|")
    .split("|")
)


def images() -> list[tuple[str, ...]]:
    """Returns the candidate and the references of each image."""
    framed = [tuple(form.format(piece) for form in FRAMES[index % len(FRAMES)]) for index, piece in enumerate(PIECES)]
    # Every other candidate uses the word order of the last frame, so that the scores differ.
    return CAPTIONS + [image if index % 2 else image[::-1] for index, image in enumerate(framed)]


def main() -> None:
    """Writes the captions, their tokens and their scores."""
    all_images = images()
    tokenizer = PTBTokenizer()
    res = tokenizer.tokenize({i: [{"caption": image[0]}] for i, image in enumerate(all_images)})
    gts = tokenizer.tokenize({i: [{"caption": each} for each in image[1:]] for i, image in enumerate(all_images)})
    assert len(res) == len(gts) == len(all_images)
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(gts, res)
        rouge, rouges = Rouge().compute_score(gts, res)
        cider, ciders = Cider().compute_score(gts, res)
    content = {
        "candidates": [image[0] for image in all_images],
        "references": [image[1:] for image in all_images],
        "candidate_tokens": [res[i][0] for i in range(len(all_images))],
        "reference_tokens": [gts[i] for i in range(len(all_images))],
        "scores": {f"BLEU-{n}": score for n, score in enumerate(bleu, start=1)} | {"ROUGE-L": rouge, "CIDEr": cider},
        "ROUGE-L": list(rouges),
        "CIDEr": list(ciders),
    }
    text = json.dumps(content, ensure_ascii=False, indent=0)
    (Path(__file__).parent / "captions.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
