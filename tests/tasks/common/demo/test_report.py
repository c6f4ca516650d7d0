from __future__ import annotations

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from PIL import Image

from taskdistill.tasks.common.demo import report as page
from taskdistill.tasks.common.demo.results import TrainingLog

NASTY = "<script>alert('x')</script> & \"quoted\" {{ braces }} https://example.org/"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def make_report(text: str = "text") -> page.Report:
    mark = page.Mark(1, 1, 4, 4, text, "#123456")
    table = page.Table(["model", text], [["teacher", "0.4"], ["student", text]], strong=1)
    picture = page.Picture(png(), 8, 8, [mark], note=text)
    return page.Report(
        title=text,
        summary=text,
        table=table,
        notes=[text],
        sections=[
            page.Section(text, text, [page.Figure(png(), text, text)], [table]),
            page.Section(
                "pictures",
                gallery=page.Gallery(["truth", text], [[picture, picture]] * 2, text),
                listings=[page.Listing(text, text)],
            ),
        ],
    )


class Reader(HTMLParser):
    """Collects attributes and text, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(report: page.Report) -> Reader:
    reader = Reader()
    reader.feed(page.render(report))
    reader.close()
    assert not reader.open
    return reader


def test_the_page_fetches_nothing():
    reader = read(make_report())
    addresses = [v for _, name, v in reader.attributes if name in ("src", "href", "srcset")]
    assert len(addresses) == 5
    assert all(value.startswith("data:image/png;base64,") for value in addresses)
    assert not {"script", "link", "iframe", "base"} & set(reader.seen)
    assert not re.search(r"url\(|@import|https?:", page.render(make_report()))


def test_every_text_is_escaped():
    reader = read(make_report(NASTY))
    assert "script" not in reader.seen
    # Nothing is lost either: title, heading, summary, two headers, two cells, and so on.
    assert "".join(reader.words).count(NASTY) >= 12
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)


def test_a_phone_gets_its_width():
    reader = read(make_report())
    assert ("meta", "name", "viewport") in reader.attributes
    assert reader.seen.count("svg") == 4


def test_labels_stay_inside_the_picture():
    mark = page.Mark(120, 0, 8, 8, "9 0.99", "#123456")
    picture = page.Picture(png(128, 128), 128, 128, [mark])
    report = page.Report(
        "t", "s", page.Table(["a"], [["b"]]), [], [
            page.Section("p", gallery=page.Gallery(["x"], [[picture]]))
        ],
    )  # fmt: skip
    html = page.render(report)
    frames = re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)"', html)
    x, y, width = map(float, frames[1])
    assert x + width <= 128.05
    assert y >= 0


def with_gallery(gallery: page.Gallery) -> page.Report:
    table = page.Table(["a"], [["b"]])
    return page.Report("t", "s", table, [], [page.Section("p", gallery=gallery)])


def test_legend():
    reader = read(
        with_gallery(page.Gallery(["x"], [], legend=[("#d55e00", NASTY), ("teal", "sea")]))
    )
    swatches = [v for tag, name, v in reader.attributes if (tag, name) == ("rect", "fill")]
    assert swatches == ["#d55e00", "teal"]
    assert [word for word in reader.words if word in (NASTY, "sea")] == [NASTY, "sea"]
    assert "ul" not in read(with_gallery(page.Gallery(["x"], []))).seen


def test_pictures_without_marks():
    # Nothing was found on the first; on the second there was nothing to mark.
    pictures = [page.Picture(png(), 8, 8, []), page.Picture(png(), 8, 8, pixelated=True)]
    reader = read(with_gallery(page.Gallery(["teacher", "mask"], [pictures])))
    names = [v for tag, name, v in reader.attributes if name == "aria-label"]
    assert names == ["teacher: nothing", "mask"]
    images = [name for tag, name, v in reader.attributes if tag == "image"]
    assert images.count("class") == 1
    assert ("image", "class", "pixelated") in reader.attributes
    assert ".gallery .pixelated { image-rendering: pixelated; }" in page.render(
        with_gallery(page.Gallery([], []))
    )


def test_markdown_escapes_bars():
    text = page.Table(["model", "a|b"], [["teacher", "1"]]).markdown()
    assert text.splitlines() == ["| model | a\\|b |", "|:--|--:|", "| teacher | 1 |"]


def test_write_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "report.html"
    page.write_report(make_report("first"), path)
    page.write_report(make_report("second"), path)
    assert "second" in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    page.write_report(make_report("first"), path)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        page.write_report(make_report("second"), path)
    assert "first" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def decoded(image: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(image)).size


def test_diagrams():
    rows = [
        {"step": i, "lr": 1.0, "loss": 3.0, "loss_kd_x": 1.0, "kd_x_raw": float("nan")}
        for i in range(3)
    ]
    log = TrainingLog(rows, [{"q": 0.1, "step": 1}, {"other": 1.0, "step": 2}])
    loss = page.loss_curve("student", "#888888", log)
    assert loss.y == [2.0, 2.0, 2.0]
    metric = page.metric_curve("student", "#888888", log.val, "q")
    assert (metric.x, metric.y) == ([1], [0.1])
    width, height = decoded(page.plot_curves([loss, loss, metric], "iteration", "loss"))
    assert width > height > 300
    one, two = page.plot_terms([log]), page.plot_terms([with_second_term(log)] * 2)
    assert one and two
    assert decoded(two)[1] > 1.5 * decoded(one)[1]
    assert page.plot_terms([TrainingLog([{"step": 1, "loss": 1.0}])]) is None
    assert decoded(page.plot_curves([], "x", "y"))[0] > 300


def test_diagrams_of_many_models_keep_their_legend_beside_the_curves():
    curves = [page.Curve(f"model {i}", "#888888", [0, 1], [0, i], "--") for i in range(6)]
    few, many = (
        Image.open(io.BytesIO(page.plot_curves(shown, "x", "y"))).convert("L")
        for shown in (curves[:3], curves)
    )
    # The strip at the right: empty below the last tick with few, with the legend's text with many.
    box = (int(0.9 * few.width), int(0.3 * few.height), few.width - 20, int(0.7 * few.height))
    dark = [sum(image.crop(box).histogram()[:100]) for image in (few, many)]
    assert dark[1] > 10 * max(1, dark[0])


def with_second_term(log: TrainingLog) -> TrainingLog:
    return TrainingLog([{**row, "loss_kd_y": 2.0, "kd_y_raw": 1.0} for row in log.train])


def test_a_browser_can_open_it(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no headless browser is installed")
    page.write_report(make_report(), tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}"]
    subprocess.run(
        [browser, *arguments, (tmp_path / "report.html").as_uri()], check=True, timeout=60
    )
    assert len(Image.open(shot).convert("RGB").getcolors(1 << 24) or ()) > 10
