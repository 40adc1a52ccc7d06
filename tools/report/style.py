"""The style sheet of a page, light or dark according to the reader's system setting."""

_LIGHT = ("#2563eb", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#0c8599", "#946200", "#495057")
_DARK = ("#74a9ff", "#ff9457", "#69db7c", "#da77f2", "#f783ac", "#3bc9db", "#ffd43b", "#ced4da")


def _colours(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours))


_SERIES = "\n".join(f".c{n} {{ color: var(--c{n}); }}" for n in range(len(_LIGHT)))

STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1c1e21; --faint: #63676e; --rule: #dcdfe3; --ground: #fff; --panel: #f6f7f9;
  --yes: #1a7f37; --no: #c4232f; --mark: #fff3bf; {_colours(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e8eb; --faint: #9ba1a9; --rule: #383d44; --ground: #15181c; --panel: #1e2227;
    --yes: #57c46f; --no: #ff7b80; --mark: #4a4210; {_colours(_DARK)} }}
}}
{_SERIES}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; margin: 0 auto; padding: 1.5em;
  max-width: 1400px; color: var(--ink); background: var(--ground); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6em; margin: 0 0 .4em; }}
h2 {{ font-size: 1.2em; margin: 2em 0 .6em; padding-bottom: .2em; border-bottom: 1px solid var(--rule); }}
h3 {{ font-size: 1em; margin: 1.4em 0 .4em; }} h4 {{ margin: 1em 0 .3em; }}
p {{ margin: .4em 0; }}
.faint {{ color: var(--faint); font-size: .9em; }} .remark {{ color: var(--no); }}
.yes {{ color: var(--yes); }} .no {{ color: var(--no); }}
nav {{ margin: .6em 0; }} nav a {{ margin-right: 1em; }} a {{ color: var(--c0); text-decoration: none; }}
a:hover {{ text-decoration: underline; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; margin: .6em 0; }}
dt {{ color: var(--faint); }} dd {{ margin: 0; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .5em 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3em .9em .3em 0; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }}
th {{ font-weight: 500; }} th:first-child, .left th, .left td {{ text-align: left; overflow-wrap: normal; }}
table:not(.left) td {{ white-space: nowrap; }}
.left td, .left th {{ max-width: 30em; }} .left td {{ min-width: 7em; overflow-wrap: anywhere; }}
.head th {{ color: var(--faint); font-size: .9em; vertical-align: bottom; }}
.split th {{ padding-top: 1em; font-weight: 600; text-align: left; }} .best {{ font-weight: 700; }}
th i, .key i {{ display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  background: currentColor; margin-right: .25em; }}
.bar {{ display: inline-block; position: relative; width: 120px; height: .7em; background: var(--panel); }}
.bar i {{ display: block; height: 100%; background: var(--c0); opacity: .75; }}
.bar b {{ position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--no); }}
.legend {{ margin: .3em 0; }} .key {{ margin-right: 1.2em; white-space: nowrap; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 1em 1.4em; }}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ font-weight: 500; font-size: .92em; }} .last {{ float: right; color: var(--faint); font-weight: 400; }}
svg {{ width: 100%; height: auto; display: block; }}
svg text {{ font-size: 11px; fill: var(--faint); }} .x {{ text-anchor: middle; }}
.y {{ text-anchor: end; dominant-baseline: central; }}
.grid {{ stroke: var(--rule); }} .axis {{ stroke: var(--faint); fill: none; }}
.line {{ fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }}
.raw {{ opacity: .38; stroke-width: 1; }} .dashed {{ stroke-dasharray: 5 3; }}
circle {{ fill: currentColor; }} path.mark {{ stroke: var(--faint); stroke-dasharray: 3 3; }}
.at {{ fill: transparent; }} .at:hover {{ fill: var(--faint); fill-opacity: .16; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: .9em; margin: .6em 0; }}
.cards.two {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }}
.cards.two .images {{ flex-wrap: nowrap; }}
.cards.wide {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); }}
.card {{ position: relative; border: 1px solid var(--rule); border-left-width: 4px; border-radius: 5px; padding: 1.3em .8em .6em;
  background: var(--panel); }}
.card p {{ margin: .15em 0; font-size: .92em; }}
.card.right {{ border-left-color: var(--yes); }} .card.wrong {{ border-left-color: var(--no); }}
.number {{ position: absolute; top: .1em; right: .7em; color: var(--faint); font-size: .75em; }}
.images {{ display: flex; flex-wrap: wrap; gap: .5em; margin: .3em 0; }}
.beside {{ display: flex; gap: .9em; }} .beside > * {{ flex: 1 1 0; min-width: 0; }} .beside > .images {{ flex: 0 1 auto; }}
.image img, details img {{ display: block; max-width: 100%; height: auto; }}
.image {{ border: 2px solid transparent; max-width: 100%; }} .image.right {{ border-color: var(--yes); }}
.image figcaption {{ font-size: .75em; color: var(--faint); font-weight: 400; }}
.box {{ display: inline-block; min-width: 1.2em; padding: 0 .3em; border-radius: 2px; color: #fff; font-style: normal;
  font-size: .8em; text-align: center; min-height: 1.2em; vertical-align: middle; }}
summary {{ cursor: pointer; margin: .8em 0 .4em; }} summary:hover {{ color: var(--c0); }}
details.run {{ border: 1px solid var(--rule); border-radius: 6px; padding: 0 1em; margin: .8em 0; }}
details.run > summary {{ font-weight: 600; font-size: 1.05em; margin: .7em 0; }}
pre {{ background: var(--panel); padding: .9em; overflow-x: auto; font-size: .86em; line-height: 1.4; border-radius: 5px;
  white-space: pre-wrap; }}
mark {{ background: var(--mark); color: inherit; }}
"""
