from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("jinja2")

from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

import taskdistill.tasks.gan  # noqa: F401
from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.tasks.gan.models import ResnetGenerator, UnetGenerator
from taskdistill.tasks.gan.page import Comparison, InputError, make_server, server

ROOT = Path(__file__).resolve().parents[4]


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Negative(nn.Module):
    in_channels = 1

    def forward(self, x: Tensor) -> Tensor:
        return -x


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def picture(height: int = 16, width: int = 16, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def decode(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.fixture(scope="module")
def served() -> Iterator[server._Server]:
    samples = [torch.full((3, 16, 16), 50 * i, dtype=torch.uint8) for i in range(3)]
    comparison = Comparison(dict(Teacher=Same(), Student=Negative()), (16, 16), samples)
    made = make_server(comparison, port=0)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join(5)
    assert not thread.is_alive()


def ask(
    made: server._Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    host, port = made.server_address[:2]
    connection = http.client.HTTPConnection(str(host), int(port), timeout=20)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_an_image_comes_back_from_both(served):
    image = picture()
    status, headers, body = ask(served, "POST", "/translate", png(image))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    found = json.loads(body)
    pixels, grey = np.array(image), np.array(image.convert("L"))
    np.testing.assert_array_equal(decode(found["input"]), pixels)
    teacher, student = found["outputs"]
    assert (teacher["name"], student["name"]) == ("Teacher", "Student")
    np.testing.assert_array_equal(decode(teacher["image"]), pixels)
    # One channel in and out: the colour image is turned to grey for it.
    np.testing.assert_array_equal(decode(student["image"]), 255 - grey)
    gap = np.abs(pixels.astype(float) - (255.0 - grey)[..., None]).mean()
    assert found["difference"] == pytest.approx(gap, abs=0.01)
    assert teacher["ms"] >= 0 and student["ms"] >= 0


@pytest.mark.parametrize(("fit", "ends"), [("stretch", (128, 128)), ("crop", (255, 0))])
def test_images_are_resized(served, fit, ends):
    """A wide picture: white, then black; grey at both ends, which a crop leaves out."""
    pixels = np.full((20, 60), 128, dtype=np.uint8)
    pixels[:, 20:30], pixels[:, 30:40] = 255, 0
    body = png(Image.fromarray(pixels))
    seen = decode(json.loads(ask(served, "POST", f"/translate?fit={fit}", body)[2])["input"])
    assert seen.shape == (16, 16, 3)
    np.testing.assert_allclose(seen[8, [0, -1], 0], ends, atol=20)  # bicubic: edges swing


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats(kind):
    assert server.read_image(png(picture(), kind)).size == (16, 16)


def test_transparent_and_turned_images():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert server.read_image(png(clear)).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    buffer = io.BytesIO()
    picture(10, 20).save(buffer, "JPEG", exif=exif)
    assert server.read_image(buffer.getvalue()).size == (10, 20)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no image"),
        (b"GIF89a, but no more", "no image"),
        (png(picture(64, 64))[:300], "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (png(Image.new("I;16", (4, 4))), "8 bits"),
        (png(Image.new("1", (9000, 9000))), "9000x9000 pixels"),
    ],
    ids=["empty", "cut header", "cut body", "svg", "16 bits", "huge"],
)
def test_what_is_no_image_is_told(served, body, message):
    status, _, answer = ask(served, "POST", "/translate", body)
    assert status == 400
    assert message in json.loads(answer)["error"]


def test_unknown_fit(served):
    status, _, answer = ask(served, "POST", "/translate?fit=tile", png(picture()))
    assert status == 400 and "'tile'" in json.loads(answer)["error"]


def test_large_files_are_refused_and_the_server_goes_on(served):
    status, _, answer = ask(served, "POST", "/translate", bytes(server.MAX_BYTES + 1))
    assert status == 413 and "at most 20" in json.loads(answer)["error"]
    # As large as may be: read, and then found to be no image.
    assert ask(served, "POST", "/translate", bytes(server.MAX_BYTES))[0] == 400
    assert ask(served, "GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("length", "status"), [(None, 411), ("many", 400), ("-5", 400), ("4", 400)]
)
def test_lengths(served, length, status):
    """The last one promises more than it sends."""
    host, port = served.server_address[:2]
    stated = "" if length is None else f"Content-Length: {length}\r\n"
    with socket.create_connection((str(host), int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST /translate HTTP/1.0\r\nHost: localhost\r\n{stated}\r\nab".encode()
        )
        connection.shutdown(socket.SHUT_WR)
        assert f" {status} ".encode() in connection.recv(100)


def test_samples(served):
    status, headers, body = ask(served, "GET", "/samples/2")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert np.array(Image.open(io.BytesIO(body)))[0, 0].tolist() == [100] * 3
    assert ask(served, "GET", "/samples/3")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/samples/../../server.py",
        "/samples/%2e%2e/server.py",
        "/samples/-1",
        "/samples/1/",
        "//etc/passwd",
        "/page.html.j2",
        "/server.py",
        "/samples/",
        "/samples/²",
    ],
)
def test_no_path_leads_to_a_file(served, path):
    quoted = path.encode().decode("latin-1") if path.isascii() else path.replace("²", "%C2%B2")
    status, _, body = ask(served, "GET", quoted)
    assert status == 404 and set(json.loads(body)) == {"error"}


def test_other_paths_take_no_image(served):
    assert ask(served, "POST", "/", png(picture()))[0] == 404
    assert ask(served, "DELETE", "/samples/0")[0] == 501


def test_names_of_other_sites_are_refused(served):
    """A page elsewhere whose name points here could read the answers."""
    assert ask(served, "GET", "/", Host="evil.example:80")[0] == 403
    assert ask(served, "POST", "/translate", png(picture()), Host="evil.example")[0] == 403
    for name in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert ask(served, "GET", "/", Host=name)[0] == 200


def test_the_page_needs_nothing_from_elsewhere(served):
    status, headers, body = ask(served, "GET", "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    text = body.decode()
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", text) == []
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert sources == ["/samples/0", "/samples/1", "/samples/2"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "16×16" in text


def test_captions_are_escaped():
    networks = dict(Teacher=Same(), Student=Same())
    comparison = Comparison(networks, (8, 8), captions=("<script>alert(1)</script>", "b.py"))
    assert "&lt;script&gt;alert(1)" in comparison.page()


def test_costs_on_the_page():
    teacher, student = ResnetGenerator(width=8, blocks=1), ResnetGenerator(width=4, blocks=1)
    comparison = Comparison(dict(Teacher=teacher, Student=student), (16, 16))
    assert [cost["parameters"] for cost in comparison.costs] == [
        sum(p.numel() for p in network.parameters()) for network in (teacher, student)
    ]
    first, second = (cost["macs"] for cost in comparison.costs)
    assert f"<td>{first / second:.1f}x</td>" in comparison.page()


def test_a_failing_network_is_told(served, monkeypatch):
    def fail(self: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Negative, "forward", fail)
    status, _, answer = ask(served, "POST", "/translate", png(picture()))
    assert status == 500 and "out of luck" in json.loads(answer)["error"]


def test_two_browsers_take_turns(served):
    found: list[int] = []

    def work(seed: int) -> None:
        image = picture(seed=seed)
        answer = json.loads(ask(served, "POST", "/translate", png(image))[2])
        np.testing.assert_array_equal(decode(answer["outputs"][0]["image"]), np.array(image))
        found.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [0, 1, 2, 3]


def test_networks_that_do_not_run_together():
    with pytest.raises(ShapeError, match=r"Student does not run on images of 18x18.*--size"):
        Comparison(dict(Teacher=Same(), Student=ResnetGenerator(width=4, blocks=1)), (18, 18))
    halving = nn.Conv2d(3, 3, 3, stride=2, padding=1)
    with pytest.raises(ShapeError, match=r"\(16, 16\) and \(8, 8\)"):
        Comparison(dict(Teacher=Same(), Student=halving), (16, 16))
    with pytest.raises(ConfigError, match="two networks"):
        Comparison(dict(Teacher=Same()))


def test_networks_are_put_in_eval_mode():
    network = UnetGenerator(downs=2, width=4).train()
    Comparison(dict(Teacher=network, Student=Same()), (16, 16))
    assert not network.training


def test_a_port_in_use(served):
    with pytest.raises(ConfigError, match=r"in use.*--port"):
        make_server(served.comparison, port=served.server_address[1])
    with pytest.raises(ConfigError, match="--port"):
        make_server(served.comparison, port=70000)


def test_read_image_raises_its_own_error():
    with pytest.raises(InputError):
        server.read_image(b"x")


@pytest.fixture
def command(tmp_path) -> list[str]:
    words = [sys.executable, str(ROOT / "tools/compare_generators.py"), "--port", "0"]
    data = dict(dataset=dict(type="DigitRestyle", split="val", size=32))
    for role, width in (("teacher", 8), ("student", 4)):
        generator = dict(type="ResnetGenerator", width=width, blocks=1)
        model = dict(type="ImageTranslator", generator=generator)
        entries = dict(task="gan", default_scope="mmengine", model=model, val_dataloader=data)
        path = tmp_path / f"{role}.py"
        path.write_text(Config(entries).pretty_text)
        network = ResnetGenerator(width=width, blocks=1)
        torch.save(network.state_dict(), tmp_path / f"{role}.pth")
        words += [f"--{role}", str(path), str(tmp_path / f"{role}.pth")]
    return words


def test_the_command_serves_until_it_is_interrupted(command):
    pytest.importorskip("sklearn")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r":(\d+)/", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/samples/11")
        sample = connection.getresponse().read()
        connection.close()
        connection.request("POST", "/translate", sample)
        found = json.loads(connection.getresponse().read())
        assert decode(found["outputs"][1]["image"]).shape == (32, 32, 3)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert out.strip() == "Stopped." and "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


def test_a_browser_shows_both(served, tmp_path):
    """The page's script runs under its own policy, and draws what came back."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no headless browser is installed")
    made = make_server(served.comparison, port=0)
    click = "<script>document.querySelector('[data-sample]').click()</script></body>"
    made.page = made.page.replace(b"</body>", click.encode())
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
        profile = f"--user-data-dir={tmp_path}"
        done = subprocess.run(
            [browser, *arguments, profile, "--dump-dom", made.url],
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
    finally:
        made.shutdown()
        made.server_close()
    # Black through the one is black, through the other white.
    assert "Mean difference: 255 of 255" in done.stdout
    assert len(re.findall(r'<img id="output[01]"[^>]* src="data:image/png', done.stdout)) == 2
