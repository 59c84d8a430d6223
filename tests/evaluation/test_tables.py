"""Tables as they are written out."""

import math

from jaxmamba3d.evaluation.tables import Column, Number, Table, Words, escape_latex

TABLE = Table(
    [Column("model"), Column("Dice", "left|right"), Column("HD95", "left|right"), Column("Dice", "mean")],
    [
        [Words("a_b & 50 %"), Number(0.91234, 0.05), Number(3.14159, 1, digits=2), Number(0.9, 0.1, 0.02)],
        [Words("mean", bold=True), Number(math.nan), Number(2, digits=2, bold=True), Number(0.5, bold=True)],
    ],
)


def test_markdown():
    assert TABLE.markdown() == (
        "| model | left\\|right Dice | left\\|right HD95 | mean Dice |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a_b & 50 % | 0.9123 ± 0.0500 | 3.14 ± 1.00 | 0.9000 ± 0.1000 (± 0.0200) |\n"
        "| **mean** | - | **2.00** | **0.5000** |\n"
    )


def test_latex():
    lines = TABLE.latex("50 % of A_1: mean ± sd").splitlines()
    assert lines == [
        r"% needs \usepackage{booktabs,adjustbox}",
        r"\begin{table}",
        r"  \centering",
        r"  \caption{50 \% of A\_1: mean $\pm$ sd}",
        r"  \begin{adjustbox}{max width=\textwidth}",
        r"  \begin{tabular}{lrrr}",
        r"    \toprule",
        r"     & \multicolumn{2}{c}{left|right} & \multicolumn{1}{c}{mean} \\",
        r"    \cmidrule(lr){2-3} \cmidrule(lr){4-4}",
        r"    model & Dice & HD95 & Dice \\",
        r"    \midrule",
        r"    a\_b \& 50 \% & 0.9123 $\pm$ 0.0500 & 3.14 $\pm$ 1.00 & 0.9000 $\pm$ 0.1000 ($\pm$ 0.0200) \\",
        r"    \textbf{mean} & -- & \textbf{2.00} & \textbf{0.5000} \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"  \end{adjustbox}",
        r"\end{table}",
    ]


def test_html():
    """What could be taken for tags is escaped; spreads can be told from numbers."""
    table = Table([Column("<a>"), Column("Dice", "b&c"), Column("HD95", "b&c")], TABLE.rows)
    lines = table.html().splitlines()
    assert lines[2] == '<tr><td></td><th scope="colgroup" colspan="2">b&amp;c</th></tr>'
    assert lines[3].startswith('<tr><th scope="col">&lt;a&gt;</th><th scope="col">Dice</th>')
    assert lines[6] == (
        '<tr><th scope="row">a_b &amp; 50 %</th><td>0.9123 <span class="sd">± 0.0500</span></td>'
        '<td>3.14 <span class="sd">± 1.00</span></td><td>0.9000 <span class="sd">± 0.1000</span> '
        '<span class="fold-sd">(± 0.0200)</span></td></tr>'
    )
    assert lines[7].startswith(
        '<tr><th scope="row"><strong>mean</strong></th><td>-</td><td><strong>2.00</strong>'
    )
    assert "colgroup" not in Table([Column("a"), Column("b")], []).html()


def test_columns_without_groups_have_one_heading_row():
    latex = Table([Column("a"), Column("b")], [[Words("x"), Number(1, digits=0)]]).latex("")
    assert "multicolumn" not in latex
    assert latex.splitlines()[7:10] == [r"    a & b \\", r"    \midrule", r"    x & 1 \\"]


def test_what_latex_would_take_for_commands():
    assert escape_latex(r"\a~^<{}>#$") == (
        r"\textbackslash{}a\textasciitilde{}\textasciicircum{}\textless{}\{\}\textgreater{}\#\$"
    )
