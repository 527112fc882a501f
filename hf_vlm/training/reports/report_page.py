"""A `RunReport` as one HTML page that needs nothing else: no network, no script, pictures within it.

Everything that comes from data is escaped, and the page forbids browsers to run scripts or load anything.
"""

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from hf_vlm.training.reports.answer_errors import Confusion
from hf_vlm.training.reports.label_masks import LabelMask, MaskedToken
from hf_vlm.training.reports.report_curves import curve_figure
from hf_vlm.training.reports.report_style import STYLE
from hf_vlm.training.reports.run_history import has_evaluation
from hf_vlm.training.reports.run_report import RunReport, error_rate
from hf_vlm.training.reports.run_samples import Findings, Sample
from hf_vlm.training.reports.word_attention import WordMap

_JPEG_QUALITY = 85
_BAR = 8  # rem, of a rate of 1
_WIDE = 2.5  # aspect from which a picture is shown as a line of text


def write_report(report: RunReport, file: str | os.PathLike) -> None:
    """Writes the page, whole or not at all.

    Raises:
        OSError: if the file can't be written.
    """
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(
            f"A file for the report is wanted, got the folder {target}. Name a file such as report.html."
        )
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text(report_html(report), encoding="utf-8")
    partial.replace(target)


def report_html(report: RunReport) -> str:
    """The page."""
    name = html.escape(report.name)
    sections = {
        "curves": ("Curves", _curves(report)),
        "samples": ("Answers", _samples(report)),
        "errors": ("Errors", _errors(report)),
        "attention": ("Where the model looks", _attention(report)),
        "masks": ("What is learnt", _masks(report)),
    }
    shown = {key: section for key, section in sections.items() if section[1]}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in shown.items())
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>{content}</section>'
        for key, (title, content) in shown.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: report of a training run</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{name}</h1>{_facts(report)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>{body}</main>
<footer><p>Written by <code>hf-vlm show</code>.</p></footer>
</body>
</html>
"""


def picture_url(picture: Image.Image) -> str:
    """A picture as a data URL, PNG or JPEG, whichever is smaller."""
    picture = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    written = {}
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": _JPEG_QUALITY})):
        with io.BytesIO() as file:
            picture.save(file, kind.upper(), **settings)
            written[kind] = file.getvalue()
    kind = min(written, key=lambda name: len(written[name]))
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode()}"


def _image(picture: Image.Image, alt: str) -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img{_shape(picture)} src="{picture_url(picture)}" {size} alt="{html.escape(alt)}">'


def _shape(picture: Image.Image) -> str:
    """An attribute for pictures that are lines of text, which take the whole width."""
    return ' class="text"' if picture.width >= _WIDE * picture.height else ""


def _facts(report: RunReport) -> str:
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in report.facts.items()
    )
    parts = ""
    if report.findings is not None and report.findings.parts:
        rows = "".join(
            f'<tr><th scope="row">{html.escape(part.name)}</th><td class="number">{part.num_parameters:,}</td>'
            f'<td class="number">{part.num_trained:,}</td>'
            f'<td class="number">{part.num_parameters - part.num_trained:,}</td></tr>'
            for part in report.findings.parts
        )
        parts = (
            '<details><summary>Parameters by part</summary><div class="scroll"><table><thead><tr><th scope="col">part</th>'
            '<th scope="col" class="number">parameters</th><th scope="col" class="number">trained</th>'
            f'<th scope="col" class="number">frozen</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
        )
    recipe = f"<details><summary>Recipe, every value</summary><pre>{html.escape(report.recipe)}</pre></details>"
    return f'<dl class="facts">{facts}</dl>{parts}{recipe}'


def _curves(report: RunReport) -> str:
    notes = []
    if not report.charts:
        notes.append("Nothing was logged.")
    elif not has_evaluation(report.charts):
        notes.append("No evaluation was logged.")
    told = "".join(f"<p>{note}</p>" for note in notes)
    names = dict.fromkeys(line.name for chart in report.charts for line in chart.lines)
    kinds = {name: number for number, name in enumerate(names)}  # a line looks the same in every chart
    return told + f'<div class="charts">{"".join(curve_figure(chart, kinds) for chart in report.charts)}</div>'


def _samples(report: RunReport) -> str:
    found = report.findings
    if report.problem is not None:
        return f'<div class="problem"><p>There are no answers: {html.escape(report.problem)}</p></div>'
    if found is None or not found.samples:
        return f"<p>No row was answered.</p>{_problems(found)}"
    return (
        f"<p>{_summary(found)}</p>{_problems(found)}"
        f'<div class="cards">{"".join(_card(found.samples[index], found) for index in found.shown)}</div>'
    )


def _summary(found: Findings) -> str:
    judged = [sample.is_right for sample in found.samples if sample.is_right is not None]
    told = [f"Answered now by the trained model: {html.escape(found.asked_of)}, spread evenly over the sets."]
    if judged:
        told.append(f"{sum(judged)} of {len(judged)} that can be told right or wrong are right.")
    if (rate := error_rate(found.samples)) is not None and found.unit == "characters":
        told.append(f"CER {_percent(rate)} on these rows.")
    if len(found.shown) < len(found.samples):
        told.append(f"{len(found.shown)} of them are shown.")
    return " ".join(told)


def _problems(found: Findings | None) -> str:
    if found is None or not found.problems:
        return ""
    items = "".join(f"<li>{html.escape(problem)}</li>" for problem in found.problems)
    return f'<div class="problem"><p>Left out, as they could not be read:</p><ul>{items}</ul></div>'


def _card(sample: Sample, found: Findings) -> str:
    pictures = "".join(
        _image(picture, f"picture {number} of {sample.source}")
        for number, picture in enumerate(sample.pictures, start=1)
    )
    rows = [(role, words) for role, words in sample.turns]
    rows += [("wanted", reference) for reference in dict.fromkeys(sample.references)]
    rows.append(("answer" if sample.references else "result", sample.answer))
    kind = f", {html.escape(sample.kind)}" if sample.kind and found.unit != "classes" else ""
    return (
        f'<article class="card"><div class="pictures">{pictures}</div>{_words(rows)}{_verdict(sample)}'
        f'<p class="source">{html.escape(sample.source)}{kind}</p></article>'
    )


def _words(rows: Iterable[tuple[str, str]]) -> str:
    told = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(text) or '<i>nothing</i>'}</dd>" for name, text in rows)
    return f"<dl>{''.join(told)}</dl>"


def _verdict(sample: Sample) -> str:
    if not sample.references:
        return ""
    kind, word = {True: ("right", "✓ right"), False: ("wrong", "✗ wrong"), None: ("other", "≈ in other words")}[
        sample.is_right
    ]
    apart = ""
    if sample.edits and sample.error_rate is not None:
        apart = f' <span class="soft">{len(sample.edits)} of {sample.num_characters} characters edited</span>'
    return f'<p><span class="verdict {kind}">{word}</span>{apart}</p>'


def _errors(report: RunReport) -> str:
    tables = []
    rows: list[tuple[str, ...]]
    if report.by_kind:
        rows = [
            (
                html.escape(score.kind),
                f"{score.num_rows}",
                f"{score.num_right} of {score.num_judged}" if score.num_judged else "",
                _bar(score.num_right / score.num_judged) if score.num_judged else "",
                "" if score.error_rate is None else _percent(score.error_rate),
            )
            for score in report.by_kind
        ]
        names = (
            "class" if report.findings and report.findings.unit == "classes" else "kind",
            "rows",
            "right",
            "share right",
        )
        has_rates = any(score.error_rate is not None for score in report.by_kind)
        head = (*names, "characters edited") if has_rates else names
        tables.append(_table("Right by kind", head, [row[: len(head)] for row in rows]))
    if report.confusions:
        is_text = report.findings is not None and report.findings.unit == "characters"
        title = "Commonest confusions of characters" if is_text else "Commonest confusions"
        rows = [_confusion(confusion, is_text) for confusion in report.confusions]
        tables.append(
            _table(title, ("wanted", "answered", "what", "times") if is_text else ("wanted", "answered", "times"), rows)
        )
    if report.by_length:
        rows = [
            (
                f"{score.shortest} to {score.longest}" if score.longest is not None else f"{score.shortest} and more",
                f"{score.num_lines}",
                _bar(score.error_rate),
            )
            for score in report.by_length
        ]
        tables.append(_table("CER by length", ("characters", "lines", "CER"), rows))
    worst = ""
    if report.worst and report.findings is not None:
        cards = "".join(_card(sample, report.findings) for sample in report.worst)
        worst = f'<h3>The worst of all that were answered</h3><div class="cards">{cards}</div>'
    if not tables and not worst:
        return ""
    return f'<div class="tables">{"".join(tables)}</div>{worst}'


def _confusion(confusion: Confusion, is_text: bool) -> tuple[str, ...]:
    if not is_text:
        return html.escape(confusion.wanted), html.escape(confusion.read), f"{confusion.number}"
    what = "inserted" if not confusion.wanted else "left out" if not confusion.read else "taken for another"
    return _character(confusion.wanted), _character(confusion.read), what, f"{confusion.number}"


def _character(text: str) -> str:
    if not text:
        return '<span class="soft">nothing</span>'
    name = "space" if text == " " else text
    return f'<span class="character">{html.escape(name)}</span>'


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML already; the first of a row is its head."""
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(title)}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{_BAR * min(share, 1):.2f}rem" aria-hidden="true"></span> {_percent(share)}'


def _attention(report: RunReport) -> str:
    found = report.findings
    if found is None:
        return ""
    looked = [sample for sample in found.samples if sample.maps]
    if not looked:
        note = found.maps_note or "None of the answers that are shown has attention over a picture."
        return f"<p>{html.escape(note)}</p>"
    cards = "".join(
        f'<article class="card">{_words([*sample.turns[-1:], ("answer", sample.answer)])}<div class="maps">'
        f"{''.join(_map(map_, sample) for map_ in sample.maps)}</div>"
        f'<p class="source">{html.escape(sample.source)}</p></article>'
        for sample in looked
    )
    note = f"<p>{html.escape(found.maps_note)}</p>" if found.maps_note else ""
    return (
        "<p>Attention paid to each patch of the picture when a word was written, a mean over layers and heads. Every map has its "
        "own range: clear is its least, dark red its most, which is the share that stands below. It tells where "
        "information was taken from, not why.</p>"
        f'{note}<div class="cards wide">{cards}</div>'
    )


def _map(map_: WordMap, sample: Sample) -> str:
    which = f" (picture {map_.number})" if len(sample.pictures) > 1 else ""
    image = _image(map_.picture, f"where the model looked for {map_.word!r}{which}")
    return (
        f"<figure{_shape(map_.picture)}>{image}<figcaption>{html.escape(map_.word)}{which} "
        f'<span class="soft">{_percent(map_.most)}</span></figcaption></figure>'
    )


def _masks(report: RunReport) -> str:
    found = report.findings
    if found is None:
        return ""
    if not found.masks:
        return f"<p>{html.escape(found.masks_note)}</p>" if found.masks_note else ""
    items = "".join(_mask(mask) for mask in found.masks)
    return (
        '<p>Training items as the model reads them, token by token. <span class="learnt">Underlined</span> tokens carry loss: '
        f'the model learns to say them. All others are only read.</p><div class="cards wide">{items}</div>'
    )


def _mask(mask: LabelMask) -> str:
    runs: list[list[MaskedToken]] = []
    for token in mask.tokens:
        if runs and runs[-1][0].is_learnt == token.is_learnt:
            runs[-1].append(token)
        else:
            runs.append([token])
    shown = ""
    for run in runs:
        tokens = "".join(f'<span class="token">{_visible(token.text)}</span>' for token in run)
        if run[0].is_learnt:
            shown += (
                f'<span class="said">[learnt: </span><span class="learnt">{tokens}</span><span class="said">] </span>'
            )
        else:
            shown += f"<span>{tokens}</span>"
    return (
        f'<article class="card"><div class="mask scroll" tabindex="0">{shown}</div><p class="source">{html.escape(mask.source)}: '
        f"{mask.num_learnt} of {mask.num_tokens} tokens are learnt</p></article>"
    )


def _visible(text: str) -> str:
    """A token's text, line ends shown as well as done."""
    return html.escape(text).replace("\n", '<span aria-hidden="true">⏎</span>\n')
