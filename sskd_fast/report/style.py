"""The style sheet of report.html: light and dark, phone to desktop, no external resource."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f5f1; --card: #ffffff; --ink: #1b1d22; --soft: #5c6069; --line: #e2e0d9; --track: #eceae3;
  --student: #0b7a6f; --student-soft: #9fd3cc; --teacher: #b0700b; --teacher-soft: #ecd1a0;
  --better: #0b7a6f; --even: #8a6a00; --worse: #b3382c; --open: #4a5a78;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131519; --card: #1c1f25; --ink: #eceae4; --soft: #a3a7b0; --line: #30343c; --track: #2a2e36;
    --student: #3fc4b4; --student-soft: #1d5d57; --teacher: #e7a947; --teacher-soft: #67491a;
    --better: #3fc4b4; --even: #e0b93f; --worse: #f0796c; --open: #93a9d4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 40px; }
h1, h2, h3 { line-height: 1.2; margin: 0; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); letter-spacing: -0.02em; }
section { margin-top: 52px; }
section > h2 { font-size: 1.3rem; letter-spacing: -0.01em; }
h3 { font-size: 1rem; }
p { margin: 8px 0 0; max-width: 72ch; }
.eyebrow { margin: 0 0 6px; color: var(--soft); font-size: 0.8rem; letter-spacing: 0.09em;
  text-transform: uppercase; }
.soft { color: var(--soft); font-size: 0.92rem; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 12px 0 0; padding: 0; list-style: none;
  color: var(--soft); }
.facts b { color: var(--ink); font-variant-numeric: tabular-nums; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px; }
header + main > .card:first-child { margin-top: 28px; }
.verdict { margin-top: 28px; border-left: 6px solid var(--tone); padding: 26px 26px 24px; }
.verdict.better { --tone: var(--better); } .verdict.even { --tone: var(--even); }
.verdict.worse { --tone: var(--worse); } .verdict.open { --tone: var(--open); }
.verdict .eyebrow { color: var(--tone); font-weight: 650; }
.verdict h2 { font-size: clamp(1.25rem, 3.4vw, 1.7rem); letter-spacing: -0.015em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 16px 24px;
  margin: 22px 0 6px; }
.tiles + p { margin-top: 18px; }
.tiles div { border-top: 1px solid var(--line); padding-top: 10px; }
.tiles dt { color: var(--soft); font-size: 0.86rem; line-height: 1.35; }
.tiles dd { margin: 0; font-size: 1.75rem; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tiles div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.warnings { margin-top: 16px; border-left: 6px solid var(--even); }
.warnings h2 { font-size: 1.1rem; }
.warnings ul { margin: 8px 0 0; padding-left: 20px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px;
  margin-top: 16px; align-items: start; }
.two > * { min-width: 0; }
.scroll { overflow-x: auto; }
section > .card.scroll { margin-top: 16px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 0.86rem; padding-bottom: 8px; }
th, td { padding: 9px 0 9px 12px; text-align: right; border-top: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-size: 0.8rem; font-weight: 600; }
tbody th { font-weight: 600; white-space: normal; }
th:first-child { text-align: left; padding-left: 0; }
tbody th small { display: block; color: var(--soft); font-weight: 400; font-size: 0.8rem; line-height: 1.35; }
tr.pending td, tr.pending th { color: var(--soft); font-weight: 400; }
td.best { font-weight: 700; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px;
  background: var(--bar); }
.teacher { --bar: var(--teacher); --bar-soft: var(--teacher-soft); }
.student { --bar: var(--student); --bar-soft: var(--student-soft); }
.apart strong { color: var(--worse); }
.compared td { overflow-wrap: anywhere; }
.compared td, .compared tbody th { padding-top: 5px; padding-bottom: 5px; }
.compared td.wide { white-space: normal; min-width: 200px; }
.two > .verdict { margin-top: 0; }
.verdict .of { margin: 0 0 6px; color: var(--soft); overflow-wrap: anywhere; }
.compared tbody th { white-space: nowrap; font-weight: 400; }
.compared tr.model th { padding-top: 18px; font-weight: 650; }
.compared tr.mean th, .compared tr.mean td { font-weight: 650; border-top-style: dashed; }
.run0 { --bar: #0f8f82; } .run1 { --bar: #c47a0c; } .run2 { --bar: #4a7fd6; } .run3 { --bar: #d0487f; }
.run4 { --bar: #7d9a1f; } .run5 { --bar: #9a5fd0; } .run6 { --bar: #c9512c; } .run7 { --bar: #5c7a8c; }
.chart .line[class*="run"] { stroke: var(--bar); } .chart .dot[class*="run"] { fill: var(--bar); }
.bars { list-style: none; margin: 14px 0 0; padding: 0; display: grid; gap: 11px; font-size: 0.9rem; }
.bars .name { display: flex; justify-content: space-between; gap: 12px; }
.bars .number { font-variant-numeric: tabular-nums; font-weight: 650; }
.bars .number small { color: var(--soft); font-weight: 400; }
.track { position: relative; height: 12px; margin-top: 3px; border-radius: 3px; background: var(--track);
  overflow: hidden; }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--bar); }
.track i.behind { background: var(--bar-soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); font-size: 0.84rem; }
.image { margin-top: 26px; }
.image h3 { color: var(--soft); font-weight: 500; font-size: 0.88rem; overflow-wrap: anywhere; }
.image .note { margin-top: 2px; font-size: 0.86rem; }
.two > .image { margin-top: 6px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 18px 14px;
  margin-top: 8px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; background: var(--track); }
figcaption { margin-top: 7px; font-size: 0.82rem; line-height: 1.4; }
figcaption b { display: block; font-size: 0.88rem; }
.chips { display: flex; flex-wrap: wrap; gap: 4px; margin: 6px 0 0; padding: 0; list-style: none; }
.chips li {
  display: inline-flex; align-items: center; gap: 5px; padding: 1px 7px 1px 5px; border: 1px solid var(--line);
  border-radius: 99px; background: var(--card); font-size: 0.76rem; font-variant-numeric: tabular-nums;
}
.chips i { width: 9px; height: 9px; border-radius: 50%; border: 1px solid #0006; }
.chips .wrong { border-style: dashed; color: var(--soft); }
.swatch { display: inline-block; width: 22px; height: 12px; margin-right: 7px; border-radius: 3px; }
.swatch.kept { background: #00cdaf55; border: 2px solid #00cdaf; }
.swatch.unsure { background: repeating-linear-gradient(135deg, #ffb000 0 2px, #0000 2px 6px);
  border: 2px solid #ffb000; }
.swatch.refused { border: 2px dashed #ff5c7a; }
.chips .refused { border-style: dashed; color: var(--soft); }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 28px; }
.histograms { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px 16px;
  margin-top: 10px; }
h4 { margin: 0; font-size: 0.88rem; font-weight: 600; overflow-wrap: anywhere; }
.chart .bar.kept { fill: #00a890; } .chart .bar.unsure { fill: #e09b00; } .chart .bar.refused { fill: #d9627a; }
.chart .threshold { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 20px;
  margin-top: 16px; }
.chart { display: block; width: 100%; height: auto; max-width: 460px; }
.chart text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .value { font-weight: 650; }
.chart .axis { stroke: var(--soft); fill: none; stroke-width: 1; }
.chart .grid { stroke: var(--line); fill: none; stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .line.main { stroke: var(--student); } .chart .dot.main, .chart text.main { fill: var(--student); }
.chart .line.second { stroke: var(--teacher); } .chart .dot.second, .chart text.second { fill: var(--teacher); }
.chart .line.faint { stroke: var(--soft); stroke-width: 1; opacity: 0.45; }
.columns-chart { display: flex; align-items: flex-end; gap: 3px; height: 110px; margin: 14px 0 0; padding: 0;
  list-style: none; }
.columns-chart li { flex: 1; min-width: 0; display: flex; flex-direction: column; justify-content: flex-end;
  height: 100%;
  text-align: center; font-size: 0.74rem; line-height: 18px; color: var(--soft); font-variant-numeric: tabular-nums; }
.columns-chart i { flex: none; height: calc((100% - 18px) * var(--share)); background: var(--teacher);
  border-radius: 3px 3px 0 0; min-height: 1px; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; margin: 12px 0 0;
  font: 0.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 60px; padding-bottom: 40px; color: var(--soft); font-size: 0.84rem; }
@media (max-width: 560px) {
  header { padding-top: 26px; }
  .card { padding: 16px; } .verdict { padding: 20px 18px; }
  th, td { padding-left: 7px; font-size: 0.84rem; } tbody th .key { margin-right: 4px; }
  tbody th small { font-size: 0.76rem; }
  .columns { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""
