"""The check of a built site finds what is wrong with one."""

from built_site import faults


def test_a_site_that_is_not_sound_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">x</a><a href="#no">x</a><a href="c.html#yes">x</a><a href="c.html#no">x</a>'
        '<img src="gone.png" alt="x"><img src="c.html"><script src="https://example.org/x.js"></script>'
        '<a href="https://example.org/">x</a><a href="http//x">x</a><a href="../up.html">x</a>'
        '<img src="c.html" srcset="//example.org/y.png 2x" alt="x"><style>@import "//example.org/z.css";</style>'
    )
    (tmp_path / "c.html").write_text('<p id="yes">')
    (tmp_path / "d.css").write_text(
        'b { background: url("https://example.org/x.png") } i { background: url(gone.woff) }'
    )
    assert sorted(faults(tmp_path)) == [
        *("dead link ../up.html", "dead link b.html", "dead link gone.png", "dead link gone.woff", "dead link http//x"),
        *("loads //example.org/y.png from outside", "loads //example.org/z.css from outside"),
        *("loads https://example.org/x.js from outside", "loads https://example.org/x.png from outside"),
        *("no such anchor: #no", "no such anchor: c.html#no", "picture c.html has no description"),
    ]
