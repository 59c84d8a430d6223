"""The style of a page: for narrow and wide screens, light and dark, and for paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5d6877; --line: #dfe3e8; --stripe: #f3f5f8;
  --accent: #1f5fbf; --good: #1a7f4b; --good-back: #e2f4ea; --open: #8a5a00; --open-back: #fbf0d9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --ink: #e6eaf0; --soft: #9aa6b5; --line: #2e3742; --stripe: #202833;
    --accent: #82b1ff; --good: #6fd6a0; --good-back: #17352a; --open: #f0c069; --open-back: #3a2e16;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 0.9rem; font-size: 1.25rem; }
h3 { margin: 1.6rem 0 0.5rem; font-size: 1rem; }
header { margin-bottom: 1.5rem; }
header p { margin: 0.3rem 0 0; }
section {
  margin-bottom: 1.25rem; padding: 1.25rem 1.4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px;
}
p { margin: 0.6rem 0; }
.note, figcaption { color: var(--soft); font-size: 0.875rem; }
.missing { color: var(--open); }
.badge {
  display: inline-block; margin-left: 0.4rem; padding: 0.1rem 0.6rem; border-radius: 1rem; font-size: 0.78rem;
  font-weight: 600; vertical-align: 0.12em; color: var(--soft); background: var(--stripe);
}
.badge.good { color: var(--good); background: var(--good-back); }
.badge.open { color: var(--open); background: var(--open-back); }
dl { margin: 0; display: grid; }
dt { color: var(--soft); font-size: 0.8rem; }
dd { margin: 0; }
.facts { grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr)); gap: 0.75rem 1.5rem; }
.tiles {
  grid-template-columns: repeat(auto-fit, minmax(min(9.5rem, 100%), 1fr)); gap: 0.75rem;
  margin-bottom: 1.25rem;
}
.tiles div { padding: 0.8rem 1.1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tiles dd { font-size: 1.3rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.beside > div { min-width: 0; max-width: 100%; }
.beside h3 { margin-top: 1rem; }
.wide { max-width: 100%; overflow-x: auto; }
table {
  border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; white-space: nowrap;
}
th, td { padding: 0.32rem 0.75rem; text-align: right; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-size: 0.86em; font-weight: 600; }
thead th[scope="colgroup"] { color: var(--ink); text-align: center; }
th[scope="row"], thead th[scope="col"]:first-child { text-align: left; padding-left: 0.2rem; }
th[scope="row"] {
  position: sticky; left: 0; background: var(--card); font-weight: 400;
}
tbody tr:hover > * { background: var(--stripe); }
.sd, .fold-sd { color: var(--soft); font-size: 0.86em; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.overlays { max-width: 48rem; }
.chart img { min-width: 44rem; max-width: max(100%, 44rem); }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--accent); font-weight: 600; }
pre {
  margin: 0.5rem 0; padding: 0.9rem 1rem; overflow-x: auto; background: var(--stripe); border-radius: 8px;
  font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: normal;
}
@media (prefers-color-scheme: dark) {
  .chart img { filter: invert(0.9) hue-rotate(180deg); }
}
@media (max-width: 40rem) {
  body { padding: 1.25rem 0.75rem 2rem; }
  section { padding: 1rem 0.9rem; }
  h1 { font-size: 1.5rem; }
  .tiles, .facts { grid-template-columns: 1fr 1fr; }
  .facts { gap: 0.6rem 1rem; }
  .tiles dd { font-size: 1.2rem; }
  th[scope="row"] { min-width: 7rem; max-width: 9rem; white-space: normal; overflow-wrap: break-word; }
}
@page { margin: 12mm; }
@media print {
  :root {
    color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc;
    --stripe: #f4f4f4; --accent: #000; --good: #1a7f4b; --good-back: #fff; --open: #8a5a00; --open-back: #fff;
  }
  html, body { font-size: 11px; }
  body { max-width: none; padding: 0; }
  section { padding: 0; border: 0; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
  table { white-space: normal; overflow-wrap: normal; font-size: 10px; }
  th, td { padding: 0.2rem 0.4rem; }
  .many table { font-size: 6px; }
  .many th, .many td { padding: 0.1rem 0.15rem; }
  img { max-height: 24cm; }
  .chart img { min-width: 0; max-width: 100%; filter: none; }
  .tiles { grid-template-columns: repeat(6, 1fr); }
  .tiles dd { font-size: 1.1rem; }
  h2, h3 { break-after: avoid; }
  figure, tr, .tiles div { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
