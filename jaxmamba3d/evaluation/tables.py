"""Tables of numbers, as Markdown, as LaTeX and as HTML."""

import dataclasses
import html
import itertools
import math
from collections.abc import Sequence

from jaxmamba3d.wording import markdown_table

_LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}
_MARKDOWN = {character: rf"\{character}" for character in "|*"}


@dataclasses.dataclass(frozen=True)
class Words:
    """A cell of text."""

    text: str
    bold: bool = False

    def markdown(self) -> str:
        """As Markdown."""
        text = self.text.translate(str.maketrans(_MARKDOWN))
        return f"**{text}**" if self.bold else text

    def latex(self) -> str:
        """As LaTeX."""
        return rf"\textbf{{{escape_latex(self.text)}}}" if self.bold else escape_latex(self.text)

    def html(self) -> str:
        """As HTML."""
        text = html.escape(self.text)
        return f"<strong>{text}</strong>" if self.bold else text


@dataclasses.dataclass(frozen=True)
class Number:
    """A cell of a number and how it spreads, NaN where there is none.

    Args:
        mean: the number.
        sd: written behind it after ±.
        fold_sd: a second spread, written in brackets.
        digits: decimals.
        bold: whether the number stands out.
    """

    mean: float
    sd: float = math.nan
    fold_sd: float = math.nan
    digits: int = 4
    bold: bool = False

    @property
    def text(self) -> str:
        """The number alone."""
        return f"{self.mean:.{self.digits}f}"

    def markdown(self) -> str:
        """As Markdown."""
        return self._written("-", "**{}**" if self.bold else "{}", " ± {}", " (± {})")

    def latex(self) -> str:
        """As LaTeX."""
        return self._written("--", r"\textbf{{{}}}" if self.bold else "{}", r" $\pm$ {}", r" ($\pm$ {})")

    def html(self) -> str:
        """As HTML; the spreads have the classes `sd` and `fold-sd`, for styles to set them back."""
        number = "<strong>{}</strong>" if self.bold else "{}"
        spreads = (' <span class="sd">± {}</span>', ' <span class="fold-sd">(± {})</span>')
        return self._written("-", number, *spreads)

    def _written(self, nothing: str, number: str, sd: str, fold_sd: str) -> str:
        if math.isnan(self.mean):
            return nothing
        parts = [(number, self.mean), (sd, self.sd), (fold_sd, self.fold_sd)]
        return "".join(
            form.format(f"{value:.{self.digits}f}") for form, value in parts if not math.isnan(value)
        )


@dataclasses.dataclass(frozen=True)
class Column:
    """A column's title, and that of the group of neighbouring columns it belongs to."""

    title: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns, the first of words and the others of numbers, and rows of their cells."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Words | Number]]

    def markdown(self) -> str:
        """As a Markdown table; a group's title stands before its columns'."""
        titles = [Words(f"{column.group} {column.title}".strip()).markdown() for column in self.columns]
        return markdown_table(titles, ([cell.markdown() for cell in row] for row in self.rows))

    def html(self) -> str:
        """As an HTML table, each row headed by its first cell; a group's title stands over its columns'."""
        titles = "".join(f'<th scope="col">{html.escape(column.title)}</th>' for column in self.columns)
        groups = "".join(
            f'<th scope="colgroup" colspan="{width}">{html.escape(group)}</th>'
            if group
            else "<td></td>" * width
            for group, width in self._groups()
        )
        heads = [groups, titles] if any(column.group for column in self.columns) else [titles]
        body = [
            f'<th scope="row">{row[0].html()}</th>' + "".join(f"<td>{cell.html()}</td>" for cell in row[1:])
            for row in self.rows
        ]
        head, body = ("".join(f"<tr>{row}</tr>\n" for row in rows) for rows in (heads, body))
        return f"<table>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n"

    def latex(self, caption: str) -> str:
        r"""As a floating LaTeX table that needs `\usepackage{booktabs,adjustbox}`.

        Args:
            caption: plain text.
        """
        lines = [
            r"% needs \usepackage{booktabs,adjustbox}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape_latex(caption)}}}",
            r"  \begin{adjustbox}{max width=\textwidth}",
            rf"  \begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            r"    \toprule",
            *self._latex_groups(),
            _latex_row([Words(column.title) for column in self.columns]),
            r"    \midrule",
            *(_latex_row(row) for row in self.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"  \end{adjustbox}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def _groups(self) -> list[tuple[str, int]]:
        """Title and width of each group of neighbouring columns."""
        found = itertools.groupby(self.columns, key=lambda column: column.group)
        return [(group, len(list(members))) for group, members in found]

    def _latex_groups(self) -> list[str]:
        """The row of the groups' titles and the rules under them."""
        if not any(column.group for column in self.columns):
            return []
        titles, rules, start = [], [], 1
        for group, width in self._groups():
            title = escape_latex(group)
            titles.append(rf"\multicolumn{{{width}}}{{c}}{{{title}}}" if group else " & " * (width - 1))
            if group:
                rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
        return ["    " + " & ".join(titles) + r" \\", "    " + " ".join(rules)]


def escape_latex(text: str) -> str:
    """Plain text for LaTeX."""
    return text.translate(str.maketrans(_LATEX))


def _latex_row(cells: Sequence[Words | Number]) -> str:
    return "    " + " & ".join(cell.latex() for cell in cells) + r" \\"
