"""The HTML page of a deck of slides: light, large, and without a request to any host."""

from jinja2 import Template

PAGE = Template(
    r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title | striptags }}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="libraries/reveal/reset.css">
<link rel="stylesheet" href="libraries/reveal/reveal.css">
<style>
  body { background: #fff; }
  .reveal { font: 34px/1.35 "Helvetica Neue", Arial, "Liberation Sans", "DejaVu Sans", sans-serif; color: #222; }
  .frame { box-sizing: border-box; width: 1280px; height: 720px; padding: 30px 56px 36px; text-align: left;
           display: flex; flex-direction: column; gap: 16px; }
  .body { margin: auto 0; display: flex; flex-direction: column; gap: 16px; }
  h1, h2 { font-weight: 600; line-height: 1.15; color: #0b3c5d; }
  h1 { font-size: 1.9em; }
  h2 { font-size: 1.25em; }
  strong { font-weight: 700; }
  em { font-style: italic; }
  code { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 0.85em; }
  ul, ol { display: block; margin-left: 1.1em; }
  ul { list-style: disc; }
  ol { list-style: decimal; }
  li { margin-bottom: 0.3em; }
  .title .body, .statement .body { font-size: 1.15em; }
  .statement .body { color: #444; }
  .predict .frame { background: #fff7e6; border-left: 18px solid #e69f00; }
  .predict .body { font-size: 1.3em; gap: 30px; }
  .predict .led { font-size: 0.72em; color: #555; }
  .predict .word { color: #8a5a00; font-weight: 700; }
  .figure .frame { padding: 10px 20px 26px; gap: 6px; }
  .figure h2 { font-size: 0.75em; color: #555; padding-left: 12px; }
  .figure .body { flex: 1 1 0; min-height: 0; margin: 0; gap: 6px; }
  .figure img { flex: 1 1 0; min-height: 0; width: 100%; object-fit: contain; margin: 0; }
  .figure p { font-size: 0.72em; line-height: 1.25; text-align: center; padding: 0 70px; }
  table { border-collapse: collapse; font-size: 0.8em; line-height: 1.25; margin: 0 auto; }
  th, td { padding: 6px 16px; text-align: left; vertical-align: top; border-bottom: 1px solid #ccc; }
  th { font-weight: 600; }
  mjx-container[display="true"] { margin: 10px 0 !important; font-size: 1.15em; }
  .reveal .slide-number { right: auto; left: 26px; bottom: 6px; color: #666; background: none; font-size: 15px; }
</style>
</head>
<body>
<div class="reveal"><div class="slides">
{%- for slide in slides %}
<section class="{{ slide.kind }}" aria-label="{{ slide.section | striptags | forceescape }}">
<div class="frame">
{%- if slide.kind == "title" %}
<div class="body">
<h1>{{ slide.section }}</h1>
{%- else %}
<h2>{{ slide.section }}</h2>
<div class="body">
{%- endif %}
{%- if slide.kind == "predict" %}
{%- if slide.led %}
<div class="led">{{ slide.led }}</div>
{%- endif %}
<p class="word">Predict</p>
{%- endif %}
{{ slide.body | join("\n") }}
</div>
</div>
<aside class="notes">
{{ slide.notes | join("\n") }}
</aside>
</section>
{%- endfor %}
</div></div>
<script src="libraries/reveal/reveal.js"></script>
<script src="libraries/notes/notes.js"></script>
<script>
  // what is too wide or too high for its slide, with the fonts of this machine, is made smaller when it comes up
  function fit() {
    const frame = Reveal.getCurrentSlide().querySelector(".frame"), scale = Reveal.getScale();
    for (const formula of frame.querySelectorAll('mjx-container[display="true"]')) {
      const wide = formula.firstElementChild.getBoundingClientRect().width / scale, room = frame.clientWidth - 112;
      if (wide > room) formula.style.fontSize = (1.15 * room) / wide + "em";
    }
    for (let size = 34; size > 20 && frame.scrollHeight > frame.clientHeight; size--) {
      frame.style.fontSize = size + "px";
    }
  }
  async function present() {
    await MathJax.startup.promise;
    document.querySelectorAll(".notes mjx-assistive-mml").forEach((twin) => twin.remove());  // seen twice over there
    await Reveal.initialize({
      width: 1280, height: 720, margin: 0, center: false, hash: true, slideNumber: "c/t", controls: false,
      transition: "none", backgroundTransition: "none", plugins: [RevealNotes],
    });
    Reveal.on("slidechanged", fit);
    fit();
    document.body.dataset.ready = "yes";
  }
  window.MathJax = {
    options: { enableMenu: false },
    startup: { ready() { MathJax.startup.defaultReady(); present(); } },
  };
</script>
<script src="libraries/mathjax/tex-svg.js"></script>
</body>
</html>
"""
)
