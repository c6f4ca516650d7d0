"""Compare two generators in the browser; everything is computed and served by this process."""

from __future__ import annotations

import argparse
import base64
import errno
import io
import json
import os
import re
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageOps
from torch import Tensor, nn

from ....core.errors import ConfigError, DataError, DistillError, ShapeError
from ...common.cost import count_macs, count_parameters, median_latency
from ...openmm.config import load_config
from ...openmm.profile import format_count, input_shape
from ..data.preprocessor import from_pixels, to_pixels
from ..export import WHICH, build_generator

__all__ = ["Comparison", "InputError", "main", "make_server"]

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64 * 10**6
FITS = ("stretch", "crop")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_ROUNDS = 3
_SAMPLES = 12
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

# The page is one document: nothing comes from elsewhere, and nothing goes there.
_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class InputError(DistillError, ValueError):
    """What was sent is no image that can be translated."""


class Comparison:
    """Two generators, and what they make of an image.

    Args:
        networks: Teacher and student, by the names to show.
        size: Height and width, in pixels, that images are resized to.
        samples: Images to choose from, uint8 (C, H, W).
        captions: A line of text for each network.
        device: Where they run.

    Raises:
        ConfigError: If there are not two networks.
        ShapeError: If one does not run on images of that size, or the two give different sizes.

    Example:
        >>> networks = dict(Teacher=nn.Conv2d(3, 3, 3, padding=1), Student=nn.Conv2d(3, 3, 1))
        >>> comparison = Comparison(networks, (16, 16))
        >>> png = encode_png(torch.zeros(3, 40, 20, dtype=torch.uint8))
        >>> [output["name"] for output in comparison.translate(png)["outputs"]]
        ['Teacher', 'Student']
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        size: tuple[int, int] = (256, 256),
        samples: Sequence[Tensor] = (),
        captions: Sequence[str] = ("", ""),
        device: str = "cpu",
    ) -> None:
        if len(networks) != 2:
            raise ConfigError(f"Expected two networks to compare, got {list(networks)}.")
        self.networks = {name: network.eval().to(device) for name, network in networks.items()}
        self.size = size
        self.samples = [encode_png(sample) for sample in samples]
        self.device = device
        # One at a time: two at once would slow each other down, and the timings lie.
        self._turn = threading.Lock()
        self.costs = []
        shapes = []
        for (name, network), caption in zip(self.networks.items(), captions, strict=True):
            image = torch.zeros(1, _in_channels(network), *size, device=device)
            try:
                with torch.no_grad():
                    shapes.append(tuple(network(image).shape[2:]))
            except (RuntimeError, ShapeError) as error:
                raise ShapeError(
                    f"{name} does not run on images of {size[0]}x{size[1]}: {error} "
                    "Give another --size."
                ) from error
            parameters, macs = (
                count_parameters(network),
                count_macs(lambda n=network, i=image: n(i)),
            )
            self.costs.append(dict(name=name, caption=caption, parameters=parameters, macs=macs))
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"The networks give images of {shapes[0]} and {shapes[1]} pixels for one of "
                f"{size}; they cannot be laid over each other. Give another --size."
            )

    def translate(self, data: bytes, fit: str = "stretch") -> dict[str, Any]:
        """Send an image file through both networks.

        Args:
            data: The file's content.
            fit: ``"stretch"`` resizes both sides, as evaluation does; ``"crop"`` keeps the
                proportions and takes the middle.

        Returns:
            ``input`` and each network's ``image`` as data URIs, its time ``ms`` (median of 3) and
            the mean ``difference`` of the two outputs in steps of 8 bits.

        Raises:
            InputError: If it is no image, a huge one, or `fit` is unknown.
        """
        picture = fitted(read_image(data), self.size, fit)
        outputs: dict[str, Tensor] = {}
        calls: dict[str, Callable[[], object]] = {}
        for name, network in self.networks.items():
            grey = _in_channels(network) == 1
            image = from_pixels(_to_tensor(picture.convert("L") if grey else picture))[None]
            calls[name] = _call(outputs, name, network, image.to(self.device))
        with self._turn:
            times = median_latency(calls, rounds=_ROUNDS, warmup=1, device=self.device)
        pixels = {name: to_pixels(output[0]).cpu() for name, output in outputs.items()}
        first, second = (value.float() for value in pixels.values())
        return dict(
            input=_uri(encode_png(_to_tensor(picture))),
            height=self.size[0],
            width=self.size[1],
            outputs=[
                dict(name=name, image=_uri(encode_png(value)), ms=round(times[name], 2))
                for name, value in pixels.items()
            ],
            difference=round(float((first - second).abs().mean()), 2),
        )

    def page(self) -> str:
        """Return the page."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        teacher, student = self.costs
        ratios = {
            key: f"{teacher[key] / student[key]:.1f}x" if student[key] else ""
            for key in ("parameters", "macs")
        }
        return environment.get_template("page.html.j2").render(
            costs=self.costs,
            ratios=ratios,
            count=format_count,
            size=self.size,
            samples=len(self.samples),
            max_bytes=MAX_BYTES,
        )


def _call(
    outputs: dict[str, Tensor], name: str, network: nn.Module, image: Tensor
) -> Callable[[], None]:
    def call() -> None:
        outputs[name] = network(image)

    return call


def _in_channels(network: nn.Module) -> int:
    found = getattr(network, "in_channels", None)
    if found is None:
        convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
        found = next((m.in_channels for m in convolutions), 3)
    return int(found)


def read_image(data: bytes) -> Image.Image:
    """Decode an uploaded image as RGB, upright, what is transparent on white.

    Raises:
        InputError: If it is no image of a known format, damaged, or of too many pixels.

    Example:
        >>> read_image(b"no image")
        Traceback (most recent call last):
            ...
        taskdistill.tasks.gan.page.server.InputError: This is no image that can be read: ...
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(
                f"The image has {width}x{height} pixels; at most {MAX_PIXELS // 10**6} million "
                "are taken. Make it smaller."
            )
        if image.mode.startswith(("I", "F")):
            raise InputError("The image has more than 8 bits a channel; convert it to 8 bits.")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # decoders fail in any way on damaged bytes
        raise InputError(
            f"This is no image that can be read: expected {', '.join(_FORMATS)}."
        ) from error


def fitted(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """Resize an image to (height, width) bicubically; see :meth:`Comparison.translate`.

    Raises:
        InputError: If `fit` is unknown.
    """
    height, width = size
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    raise InputError(f"fit={fit!r} is not one of {list(FITS)}.")


def encode_png(pixels: Tensor) -> bytes:
    """Return uint8 pixels (C, H, W), of 1 or 3 channels, as a PNG file."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def _to_tensor(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


class _Handler(BaseHTTPRequestHandler):
    """Answers the page, its samples, and images to translate; reads no file by a sent name."""

    server: _Server
    timeout = 30  # seconds a connection may be silent

    def do_GET(self) -> None:
        if not self._from_here():
            return
        path = urlsplit(self.path).path
        if path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.page)
        elif path == "/favicon.ico":
            self._send(204, "image/x-icon", b"")
        elif match := re.fullmatch(r"/samples/([0-9]{1,6})", path):
            samples, index = self.server.comparison.samples, int(match[1])
            if index < len(samples):
                self._send(200, "image/png", samples[index])
            else:
                self._fail(404, f"There is no sample {index}, only {len(samples)}.")
        else:
            self._fail(404, "There is no such page.")

    def do_POST(self) -> None:
        if not self._from_here():
            return
        parts = urlsplit(self.path)
        if parts.path != "/translate":
            self._fail(404, "There is no such page.")
            return
        stated = self.headers.get("Content-Length")
        if stated is None:
            self._fail(411, "The length of the image is missing.")
            return
        if not stated.isdecimal():
            self._fail(400, "The length of the image is no number.")
            return
        length = int(stated)
        if length > MAX_BYTES:
            self._discard(length)
            self._fail(
                413,
                f"The file has {length / 2**20:.1f} MiB; at most {MAX_BYTES // 2**20} are taken.",
            )
            return
        data = self.rfile.read(length)
        if len(data) < length:
            self._fail(400, "The file did not come whole.")
            return
        try:
            fit = parse_qs(parts.query).get("fit", ["stretch"])[-1]
            found = self.server.comparison.translate(data, fit)
        except InputError as error:
            self._fail(400, str(error))
        except Exception as error:  # the page must hear of it, whatever it is
            self._fail(500, f"The networks failed: {type(error).__name__}: {error}")
        else:
            self._send(200, "application/json", json.dumps(found).encode())

    def _from_here(self) -> bool:
        """Refuse other sites' names for this address, by which their scripts could read it."""
        if self.server.server_address[0] not in _LOOPBACK:
            return True
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = ""
        if name in _LOOPBACK:
            return True
        self._fail(403, "This page is for this computer alone; open it by 127.0.0.1.")
        return False

    def _discard(self, length: int) -> None:
        """Read what is on its way: a browser that cannot finish sending shows no answer."""
        left = min(length, 5 * MAX_BYTES)
        try:
            while left > 0 and (chunk := self.rfile.read(min(left, 1 << 16))):
                left -= len(chunk)
        except OSError:
            pass

    def _fail(self, status: int, message: str) -> None:
        self._send(status, "application/json", json.dumps(dict(error=message)).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the browser has left

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of every request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], comparison: Comparison) -> None:
        self.comparison = comparison
        self.page = comparison.page().encode()
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is no news; anything else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def make_server(comparison: Comparison, host: str = "127.0.0.1", port: int = 8000) -> _Server:
    """Return a server that has its port, and serves after ``serve_forever()``.

    Args:
        comparison: What it serves.
        host: Address to listen at; by default this computer alone can reach it.
        port: Port, or 0 for any free one.

    Raises:
        ConfigError: If the port is taken or the address is not one of this computer.
    """
    try:
        return _Server((host, port), comparison)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use by another program" if taken else f"cannot be had ({error})"
        raise ConfigError(
            f"Port {port} of {host} {reason}; give another --port, or 0 for any free one."
        ) from error


def read_samples(cfg: Config, limit: int = _SAMPLES) -> list[Tensor]:
    """Return validation images of a config, spread over its data set.

    Raises:
        DataError: If the data set cannot be read.
    """
    settings = (cfg.get("val_dataloader") or {}).get("dataset")
    if settings is None:
        return []
    init_default_scope(cfg.get("default_scope") or "mmengine")
    try:
        dataset: Any = DATASETS.build(settings)
        count = min(limit, len(dataset))
        return [dataset[i * len(dataset) // count]["inputs"] for i in range(count)]
    except DistillError:
        raise
    except Exception as error:
        raise DataError(f"The validation images cannot be read: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Compare two generators in the browser.")
    for role in ("teacher", "student"):
        parser.add_argument(
            f"--{role}", nargs=2, required=True, metavar=("CONFIG", "CKPT"), help=f"the {role}"
        )
    parser.add_argument(
        "--size", type=int, help="side of the images in pixels (default: the student config's)"
    )
    parser.add_argument("--which", choices=WHICH, default="generator", help="of CycleGANs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this computer alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000; 0: any)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch finds no CUDA device.")
    if args.size is not None and args.size < 1:
        raise ConfigError(f"--size {args.size}: expected a positive number of pixels.")
    networks, configs, captions = {}, [], []
    for role in ("teacher", "student"):
        config, checkpoint = getattr(args, role)
        configs.append(load_config(config))
        network = build_generator(configs[-1], checkpoint, args.which)
        networks[role.capitalize()] = network
        captions.append(f"{type(network).__name__}, {os.path.basename(config)}")
    _, height, width = input_shape(configs[-1])[0]
    size = (args.size, args.size) if args.size else (height, width)
    samples: list[Tensor] = []
    if args.which == "generator":  # the other one takes images of the other domain
        try:
            samples = read_samples(configs[-1])
        except DataError as error:
            print(f"No samples to choose from: {error}", file=sys.stderr)
    comparison = Comparison(networks, size, samples, captions, args.device)
    with make_server(comparison, args.host, args.port) as server:
        print(f"Open {server.url} (Ctrl-C ends it)", flush=True)
        if args.open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nStopped.")
