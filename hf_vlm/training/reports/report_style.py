"""The style sheet of a run's report: light and dark as the reader's system asks for, one column on a phone."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #55606e; --edge: #d3d9e0;
  --right: #11652f; --wrong: #a3141f; --other: #7a4b00; --learnt: #0b4fb3; --learnt-back: #e2edff;
  --c0: #0b5fd6; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; --c4: #b91c7c; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --ink: #e7ebf0; --soft: #a9b4c0;
  --edge: #36404c; --right: #7fdc9c; --wrong: #ff9aa0; --other: #f0c069; --learnt: #a9ccff; --learnt-back: #1f3658;
  --c0: #74aaff; --c1: #ff9d5c; --c2: #5fd38a; --c3: #c4a1ff; --c4: #ff8ccf; --c5: #5fd0e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.3rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } .tables + h3 { margin-top: 1.5rem; } p { margin: .4rem 0; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding: 0; margin: .8rem 0 0; }
a { color: var(--c0); } .soft, figcaption .soft, footer { color: var(--soft); font-size: .9rem; }
footer { padding-bottom: 2rem; margin-top: 2rem; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; }
.problem { border-left: 4px solid var(--wrong); padding: .4rem .8rem; background: var(--card); }
.cards, .charts { display: grid; gap: 1rem; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.chart, .card { background: var(--card); border: 1px solid var(--edge); border-radius: .5rem; padding: .8rem; margin: 0; }
.card { display: flex; flex-direction: column; gap: .3rem; }
.chart { display: flex; flex-direction: column; } .chart svg.plot { margin-top: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: .4rem; }
.pictures img, .maps img { background: #fff; border: 1px solid var(--edge); max-width: 100%; height: auto; }
.pictures img { height: 8rem; width: auto; object-fit: contain; }
.pictures img.text { height: auto; width: 100%; max-width: 22rem; }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .6rem; margin: 0; align-items: baseline; }
.card dt { color: var(--soft); font-size: .9rem; } .card dd { margin: 0; white-space: pre-wrap; }
.verdict { font-weight: 600; } .verdict.right { color: var(--right); } .verdict.wrong { color: var(--wrong); }
.verdict.other { color: var(--other); }
.source { margin-top: auto; color: var(--soft); font-size: .8rem; }
.legend { list-style: none; margin: 0; padding: 0; font-size: .9rem; } .swatch { width: 26px; height: 8px; }
svg.plot { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--edge); } .axis { stroke: var(--soft); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .spot { fill: transparent; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.dot.c0 { fill: var(--c0); } .dot.c1 { fill: var(--c1); } .dot.c2 { fill: var(--c2); }
.dot.c3 { fill: var(--c3); } .dot.c4 { fill: var(--c4); } .dot.c5 { fill: var(--c5); }
.scroll { overflow: auto; max-height: 24rem; } summary { cursor: pointer; padding: .25rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .2rem; }
th, td { border-bottom: 1px solid var(--edge); padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
td .bar { display: inline-block; height: .7rem; background: var(--c0); vertical-align: baseline; min-width: 1px; }
pre, .mask, .character { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { white-space: pre-wrap; margin: 0; font-size: .9rem; }
.character { border: 1px solid var(--edge); border-radius: .2rem; padding: 0 .3rem; white-space: pre; }
.tables { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; }
.maps { display: flex; flex-wrap: wrap; gap: .6rem; } .maps figure { margin: 0; max-width: 8.1rem; }
.maps figure.text { max-width: 100%; } .maps figcaption { font-size: .9rem; }
 .maps img { display: block; }
.mask { white-space: pre-wrap; font-size: .95rem; line-height: 1.9; }
.token { border-right: 1px solid var(--edge); }
.learnt { color: var(--learnt); background: var(--learnt-back); text-decoration: underline; text-underline-offset: 3px;
  font-weight: 600; }
.image { border: 1px dashed var(--soft); border-radius: .2rem; padding: 0 .3rem; }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 30rem) { dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .4rem; }
  h1 { font-size: 1.4rem; } }
"""
