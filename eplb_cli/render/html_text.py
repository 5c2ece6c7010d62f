"""The frame of the page that `html_page` fills; `[[name]]` is where a part goes."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>[[title]]</title>
<style>
:root { --ink: #1c1e21; --paper: #ffffff; --line: #d5d8dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --paper: #16181b; --line: #3a3e44; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
 font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 0; }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 3rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right;
 font-variant-numeric: tabular-nums; font-weight: normal; }
th:first-child, td:first-child, .words td { text-align: left; }
.numbers td:nth-child(n+4):last-child { text-align: left; }
.tables { overflow-x: auto; margin-top: 1.5rem; }
@media (max-width: 40rem) {
 .tables { gap: 1rem; font-size: .85rem; } th, td { padding-right: .6rem; }
 .numbers td:nth-child(n+4):last-child { min-width: 6.5rem; }
 .numbers td:nth-child(n+2):nth-child(-n+4) { white-space: nowrap; }
}
footer { margin: 3rem 0 1rem; padding-top: .5rem; border-top: 1px solid var(--line); font-size: .85rem;
 overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>[[title]]</h1>
[[summary]]
<div class="tables">[[totals]][[estimate]]</div>
<ul>[[warnings]]</ul>
[[sections]]
<footer>[[footer]]</footer>
<script>[[plotly]]</script>
<script>
const figures = {
[[figures]]
};
[[theme]]
</script>
</body>
</html>
"""

THEME = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(figure) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const changes = {"font.color": ink};
  for (const axis of Object.keys(figure.layout).filter(key => /^[xy]axis/.test(key))) {
    changes[axis + ".gridcolor"] = line;
    changes[axis + ".zerolinecolor"] = line;
  }
  return changes;
}
const drawn = Object.entries(figures).map(([name, figure]) => {
  figure.layout.template = {};
  return Plotly.newPlot(name, figure.data, figure.layout, {responsive: true, displaylogo: false})
    .then(() => Plotly.relayout(name, theme(figure)));
});
Promise.all(drawn).then(() => { document.body.dataset.drawn = "yes"; });
dark.addEventListener("change", () => {
  for (const [name, figure] of Object.entries(figures)) Plotly.relayout(name, theme(figure));
});
"""
