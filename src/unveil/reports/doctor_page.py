"""The page of `unveil doctor`: what was found, with pictures of the first examples of each kind."""

from collections import Counter
from pathlib import Path

import numpy as np

from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
from unveil.evaluate.examination import KINDS, Examination, Finding, Place, class_counts
from unveil.plain_text import count_of
from unveil.reports.html import Markup, element, join_markup, table_element
from unveil.reports.page import write_document
from unveil.reports.pictures import picture, small_jpeg
from unveil.reports.style import LIGHT, inline_svg, new_figure, styled

SHOWN, LISTED, CLASSES = 24, 50, 200
"""Maximum numbers of pictures of a kind, of names in a list, and of classes in a table."""
TITLES = {
    "leak": "Leaks",
    "conflicting labels": "Conflicting labels",
    "suspicious label": "Suspicious labels",
    "duplicate": "Duplicates",
    "blank": "Blank images",
    "small": "Small images",
    "long": "Long images",
}
"""The sections with pictures."""
SINGULAR = {
    "unreadable": "file that cannot be read",
    "conflicting labels": "copy with another label",
    "suspicious label": "label that the nearest images contradict",
    "blank": "blank or nearly constant image",
}
"""Serious findings, of which there is one."""
REMARKS = {
    "leak": "A model that was trained on one of these images is tested on it, so its scores are too high. Take the first image of "
    "each pair out of the test or validation split, or its copy out of the other one.",
    "conflicting labels": "Copies of one image whose labels differ: at most one of them is right.",
    "suspicious label": "At least 8 of the 10 nearest images have one other label. The second image is the nearest of those. The "
    "label, the features, or neither may be wrong: look before you change anything.",
    "duplicate": "Copies within a split count twice in training. Photographs of a series, from one place, may be among them.",
    "blank": "Nearly all of the image has one brightness.",
    "small": "Their short side is less than a quarter of that of the median image.",
    "long": "Training uses the middle of such images only.",
}


def write_doctor_page(folder: Path, found: Examination, *, max_pixels: int) -> Path:
    """Writes `report.html` into a folder."""
    counts = found.counts
    title = f"{found.name}: {count_of(len(found), 'image')} examined"
    heading = join_markup([element("h1", title), element("p", verdict_of(found), class_="verdict")])
    sections: list[tuple[str, Markup]] = [("Findings", findings_table(counts))] if counts else []
    if "unreadable" in counts:
        sections.append(("Unreadable files", unreadable_section(found.of("unreadable"))))
    for kind, name in TITLES.items():
        if kind in counts:
            sections.append((name, picture_section(found, kind, max_pixels)))
    sections.append(("Sizes", size_section(found)))
    if table := class_counts(found):
        sections.append(("Classes", class_section(found, table)))
    sections.append(("How it was examined", method_section(found)))
    return write_document(folder, heading, title, sections, "Every finding is a row of findings.csv beside this page.")


def verdict_of(found: Examination) -> str:
    """The most important findings in a sentence or two."""
    counts = found.counts
    if not counts:
        return "Nothing was found."
    parts = []
    if "leak" in counts:
        images = len({finding.place for finding in found.of("leak")})
        parts.append(f"{count_of(images, 'test or validation image')} {'is' if images == 1 else 'are'} also in another split.")
    elif found.has_splits:
        parts.append("No image was found in two splits.")
    serious = [kind for kind in SINGULAR if kind in counts]
    parts += [f"{counts[kind]:,} {SINGULAR[kind] if counts[kind] == 1 else KINDS[kind]}." for kind in serious]
    if "duplicate" in counts:
        parts.append(f"{count_of(counts['duplicate'], 'copy', 'copies')} within a split.")
    return " ".join(parts) or "Nothing serious was found."


def findings_table(counts: dict[str, int]) -> Markup:
    rows = [[KINDS[kind], f"{count:,}"] for kind, count in counts.items()]
    return table_element(["found", "count"], rows, title="Findings by kind", show_title=False)


def unreadable_section(findings: list[Finding]) -> Markup:
    """Unreadable files, grouped by reason."""
    reasons = Counter(finding.detail for finding in findings)
    parts: list[Markup] = []
    for reason, count in reasons.most_common(20):
        names = [
            f"{finding.split}: {finding.path}" if finding.split else finding.path
            for finding in findings
            if finding.detail == reason
        ]
        listed = names[: max(1, LISTED // len(reasons))]
        items = [element("li", element("code", name)) for name in listed]
        if count > len(listed):
            items.append(element("li", f"and {count - len(listed):,} more"))
        parts += [element("h3", f"{reason} ({count:,})"), element("ul", *items, class_="names")]
    if len(reasons) > 20:
        parts.append(element("p", f"{len(reasons) - 20:,} further reasons are in findings.csv."))
    return join_markup(parts)


def picture_section(found: Examination, kind: str, max_pixels: int) -> Markup:
    """The first findings of a kind, each as a picture or a pair of pictures."""
    findings = found.of(kind)
    cards = []
    for finding in findings[:SHOWN]:
        places = [place for place in (finding.place, finding.other_place) if place is not None]
        images = element("div", *(thumbnail(found, place, max_pixels) for place in places), class_="pair")
        lines = [element("code", name_of(found, place)) for place in places]
        cards.append(element("figure", images, element("figcaption", finding.detail, *(element("div", line) for line in lines))))
    more = f" The first {SHOWN} of {len(findings):,} are shown." if len(findings) > SHOWN else ""
    return join_markup([element("p", REMARKS[kind] + more), element("div", *cards, class_="cards")])


def thumbnail(found: Examination, place: Place, max_pixels: int) -> Markup:
    """An image as a small picture."""
    source = found.parts[place.split].source
    try:
        pixels = read_image(source.read(place.row), shrink_to=160, max_pixels=max_pixels)
    except Unreadable as error:  # it could be read a moment ago
        return element("span", error.reason, class_="muted")
    return picture(small_jpeg(pixels, 160), name_of(found, place))


def name_of(found: Examination, place: Place) -> str:
    """The split, the path and the label of an image."""
    split, label = found.shown(place.split), found.label(place)
    return (f"{split}: " if split else "") + found.path(place) + (f" ({label})" if label else "")


def size_section(found: Examination) -> Markup:
    """A table of sizes, channels and depths for each split, and histograms of sides and of proportions."""
    rows = []
    for split, part in found.parts.items():
        good = part.readable
        if not good.any():
            rows.append([split, "0", *[""] * 5])
            continue
        short, size = part.size[good].min(axis=1), part.size[good]
        smallest, largest = (size[index] for index in (short.argmin(), size.prod(axis=1).argmax()))
        kinds = Counter(zip(part.channels[good].tolist(), part.bits[good].tolist(), strict=True)).most_common()
        listed = ", ".join(f"{count:,} of {channels} x {bits} bit" for (channels, bits), count in kinds[:4])
        spelled = [f"{width:,} x {height:,}" for height, width in (smallest.tolist(), largest.tolist())]
        rows.append(
            [split if found.has_splits else "all", f"{int(good.sum()):,}", f"{int(np.median(short)):,} px", *spelled, listed]
        )
    head = ["split", "images", "median short side", "smallest", "largest", "channels and depth"]
    table = table_element(head, rows, title="Sizes in pixels (width x height)", show_title=False)
    sizes = np.concatenate([part.size[part.readable] for part in found.parts.values()])
    if len(np.unique(sizes, axis=0)) < 2:
        return table
    drawn = element(
        "div", *(element("figure", element("h3", name), figure) for name, figure in histograms(sizes)), class_="figures"
    )
    return join_markup([table, drawn])


def histograms(sizes: np.ndarray) -> list[tuple[str, Markup]]:
    """Histograms of the short side and of the ratio of the sides."""
    short, ratio = sizes.min(axis=1), sizes[:, 1] / sizes[:, 0]
    drawn = list[tuple[str, Markup]]()
    for name, values, unit in (("Short side", short, "px"), ("Width divided by height", ratio, "")):
        low, high = float(values.min()), float(values.max())
        if low == high:
            continue
        bins = np.geomspace(low, high, 31) if high > 2 * low else np.linspace(low, max(high, low * 1.01), 31)
        figure = new_figure(5, 2.4, layout="constrained")
        with styled():
            axes = figure.add_subplot()
            axes.hist(values, bins=bins.tolist(), color=LIGHT["primary"])
            if high > 2 * low:
                axes.set_xscale("log")
                from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

                axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.xaxis.set_major_formatter(ScalarFormatter())
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(unit)
            axes.set_ylabel("images")
        alt = f"Histogram of the {name.lower()}: {low:g} to {high:g} {unit}".strip()
        drawn.append((name, inline_svg(figure, f"histogram-{len(drawn)}", alt)))
    return drawn


def class_section(found: Examination, table: dict[str, dict[str, int]]) -> Markup:
    """How many images each class has in each split, and the classes that are rare or missing."""
    splits = list(next(iter(table.values())))
    rows = [[name, *(f"{counts[split]:,}" for split in splits)] for name, counts in list(table.items())[:CLASSES]]
    heads = splits if found.has_splits else ["images"]
    parts = [table_element(["class", *heads], rows, title="Images of each class", show_title=False, class_="numbers tall")]
    odd = [finding for kind in ("class not in train", "class not in test", "rare class") for finding in found.of(kind)]
    if odd:
        items = [
            element("li", f"{finding.kind}: ", element("code", finding.path), f" ({finding.detail})") for finding in odd[:LISTED]
        ]
        items += [element("li", f"and {len(odd) - LISTED:,} more")] if len(odd) > LISTED else []
        parts.insert(0, element("ul", *items))
    if len(table) > CLASSES:
        parts.append(element("p", f"The first {CLASSES} of {len(table):,} classes are shown."))
    return join_markup(parts)


def method_section(found: Examination) -> Markup:
    """What was compared, and what this cannot find."""
    texts = [
        "Every file was decoded in full. Images are the same if their pixels are, whatever the format of the file. Only the first "
        "frame of an animation is looked at.",
        "Near copies were sought among all images of all splits: resized, compressed, mirrored, cropped by up to a tenth of each "
        "side, brighter or darker. Candidates share the low frequencies of 32 x 32 thumbnails; they count if their fine structure "
        "agrees, tile by tile, after alignment (agreement 0.8 or more, where 1 is equal). Copies that were turned, cropped more, "
        "or painted over are not found, and things of one shape on a plain ground may be taken for copies. Of several copies of an "
        "image, the best one is named."
        if found.near
        else "Near copies were not sought (--no-near).",
    ]
    if found.agreement is None:
        texts.append("Labels were not compared with those of similar images: that needs the features of a trained encoder (--run).")
    else:
        texts.append(
            "Labels were compared with those of the 10 nearest images, by the features of the run. The most frequent label "
            f"there is the image's own for {found.agreement:.1%} of the images: the lower this is, the less a contradiction means."
        )
    return join_markup(element("p", text) for text in texts)
