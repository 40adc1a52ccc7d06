"""Small packages in the same formats as the real packages, with a few random images: folders below usr/share as in Debian, and
npm archives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from demo.real.concepts import concept_of

COLOURS = ("red", "blue", "green", "grey")
THINGS = ("bus", "cat", "cup", "fox", "key", "hat", "owl", "pan", "saw", "tie", "van", "yak")
NAMES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
PLACES = ["Arland", "Borland", "Corland", "Dorland", "Erland", "Forland", "Gorland", "Horland", "Irland", "Jorland"]
PLACES += [f"Old {place}" for place in PLACES] + [f"New {place}" for place in PLACES]
TONES = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


def picture(seed: int, *, side: int = 48) -> Image.Image:
    """An image of 4 x 4 random colours with a transparent margin. Images of different seeds are never near-duplicates."""
    tones = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    opaque = Image.fromarray(tones).resize((side - 8, side - 8), Image.Resampling.NEAREST)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.paste(opaque, (4, 4))
    return canvas


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def save(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_stamps(share: Path, captions: list[str]) -> None:
    for number, caption in enumerate(captions):
        path = share / f"tuxpaint/stamps/things/{number:03d}.png"
        save(path, encoded(picture(number)))
        save(path.with_suffix(".txt"), f"{caption}\nde.utf8=Etwas\n")


def write_clipart(share: Path, pictures: dict[str, tuple[str, list[str], bytes]]) -> None:
    """Writes the package of clip art. ``pictures`` has the title, the keywords and the image of each picture, by path without
    suffix."""
    for name, (title, keywords, content) in pictures.items():
        listed = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
        about = f"<dc:title>{title}</dc:title><rdf:Bag>{listed}</rdf:Bag>"
        about += "<dc:creator><dc:title>Anna Author</dc:title></dc:creator>"
        save(share / f"openclipart/svg/{name}.svg", f"<svg><metadata>{about}</metadata></svg>")
        save(share / f"openclipart/png/{name}.png", content)


def write_maps(share: Path) -> None:
    """Maps of three stripes, one of which has an ignored colour, and one division that has too few pixels."""
    for number, place in enumerate(PLACES):
        pixels = np.zeros((30, 40, 3), dtype=np.uint8)
        pixels[:, :10], pixels[5:25, 12:20], pixels[8:20, 22:40] = TONES
        pixels[0, 0] = (1, 2, 3)
        divisions = [(f"East {place}", TONES[1], ""), (f"West {place}", TONES[2], ""), ("Sea", TONES[0], "yes")]
        divisions.append((f"Islet of {place}", (1, 2, 3), ""))
        described = ""
        for name, rgb, ignore in divisions:
            channels = zip(("red", "green", "blue"), rgb, strict=True)
            colour = "".join(f"<{channel}>{value}</{channel}>" for channel, value in channels)
            flag = f"<ignore>{ignore}</ignore>" if ignore else ""
            described += f"<division><name>{name}</name>{flag}<color>{colour}</color></division>"
        head = f"<mapFile>{number}.png</mapFile><name>{place} (Regions)</name><divisionsName>Regions</divisionsName>"
        save(share / f"kgeography/{number}.kgm", f"<map>{head}{described}</map>")
        save(share / f"kgeography/{number}.png", encoded(Image.fromarray(pixels).quantize(8)))


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_emoji(folder: Path, names: list[str]) -> None:
    """Writes the packages of both styles of emoji, and the packages with their names and keywords. The second half of the names
    is in CLDR's derived package."""
    signs = {chr(0x1F300 + number): name for number, name in enumerate(names)}
    tables = [dict(list(signs.items())[: len(names) // 2]), dict(list(signs.items())[len(names) // 2 :])]
    packages = (("cldr-annotations-full", "annotations"), ("cldr-annotations-derived-full", "annotationsDerived"))
    for (package, inside), table in zip(packages, tables, strict=True):
        described = {sign: {"default": [*concept_of(name), "toy"], "tts": [name]} for sign, name in table.items()}
        content = json.dumps({inside: {"annotations": described}}).encode()
        pack(folder / f"{package}-48.2.0.tgz", {f"{inside}/en/annotations.json": content})
    codes = [f"{ord(sign):x}" for sign in signs]
    google = {f"img/google/64/{code}.png": encoded(picture(1000 + n)) for n, code in enumerate(codes)}
    google["img/google/64/1f44b-1f3fb.png"] = encoded(picture(5000))
    pack(folder / "emoji-datasource-google-16.0.0.tgz", google)
    fluent = {f"assets/{code}.webp": encoded(picture(2000 + n), "WEBP") for n, code in enumerate(codes)}
    fluent["assets/logo.webp"] = encoded(picture(5001), "WEBP")
    pack(folder / "lobehub-fluent-emoji-3d-1.1.0.tgz", fluent)
